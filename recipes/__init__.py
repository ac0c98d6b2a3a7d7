"""Recipes for nemo_run; installed as `cosmos_nemo_recipes`."""
