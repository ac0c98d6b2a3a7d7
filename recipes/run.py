"""The entry point `run` of nemo_run, which makes `nemo run generate` the same as `nemo cosmos generate`."""

from cosmos_nemo_recipes.commands import register

register(namespace="run")
