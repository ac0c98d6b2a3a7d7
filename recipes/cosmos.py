"""The entry point `cosmos` of nemo_run: `nemo cosmos generate`, `nemo cosmos post_train`."""

from cosmos_nemo_recipes.commands import register

register(namespace="cosmos")
