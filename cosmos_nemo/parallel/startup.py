"""What is settled before Megatron is imported and a GPU is first used."""

import os
import warnings
from collections.abc import MutableMapping

_ALLOCATOR_VARIABLES = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}
_EXTENSIONS_VARIABLE = "TORCH_EXTENSIONS_DIR"


def prepare_process() -> None:
    """To be called once by every process that makes or trains something, before anything imports Megatron."""
    set_up_allocator(os.environ)
    import_megatron(os.environ)


def set_up_allocator(environ: MutableMapping[str, str]) -> None:
    """Lets PyTorch's allocator grow its segments, unless the environment says how it is to work.

    Without that it held up to 4 GiB more of a GPU than the tensors of a 14B video needed.
    """
    if not environ.keys() & _ALLOCATOR_VARIABLES:
        environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def import_megatron(environ: MutableMapping[str, str]) -> None:
    """Imports megatron.core without the extension that it compiles on import (0.15: for unified memory).

    Nothing here uses that. Its compiler runs under a lock file, which a process that is killed meanwhile
    leaves behind, and for which torch lets every later one wait without end and without a word. In a folder
    that cannot be made it is not even begun: Megatron takes that for a machine without a compiler.
    """
    before = environ.get(_EXTENSIONS_VARIABLE)
    environ[_EXTENSIONS_VARIABLE] = os.devnull
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failed to create unified memory mempool")
            import megatron.core  # noqa: F401
    finally:
        if before is None:
            del environ[_EXTENSIONS_VARIABLE]
        else:
            environ[_EXTENSIONS_VARIABLE] = before
