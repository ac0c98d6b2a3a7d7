"""A package, though of tests only: nemo_toolkit installs one of this name, which would win otherwise."""
