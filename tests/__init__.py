"""A package, though it holds only tests: nemo_toolkit installs one of this name, which would win otherwise."""
