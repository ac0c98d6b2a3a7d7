"""NVIDIA Cosmos world models on NeMo and Megatron-core."""

import re
from importlib import metadata

__version__ = "0.1.0"

_OLDEST_MEGATRON_CORE = (0, 15)


def _refuse_old_megatron_core() -> None:
    """ImportError if the installed Megatron-core lacks the interfaces this package is written for.

    Reads the installed version and imports nothing: `--help` must not wait for torch. A missing one is left
    to the import that needs it, so that the catalog can be read without.
    """
    try:
        version = metadata.version("megatron-core")
    except metadata.PackageNotFoundError:
        return
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_MEGATRON_CORE:
        raise ImportError(
            f"cosmos_nemo needs megatron-core 0.15 or newer, but {version} is installed: "
            "start from the container nvcr.io/nvidia/nemo:25.11, or pip install 'megatron-core>=0.15,<0.16'."
        )


_refuse_old_megatron_core()
