"""Only what pyproject.toml cannot say: the folder recipes/ is imported as `cosmos_nemo_recipes`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["cosmos_nemo", "cosmos_nemo.*"]),
        "cosmos_nemo_recipes",
        *(f"cosmos_nemo_recipes.{name}" for name in find_packages("recipes")),
    ],
    package_dir={"cosmos_nemo_recipes": "recipes"},
)
