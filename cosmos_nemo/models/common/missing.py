"""What a machine lacks for a back end, and the error that says so."""

import importlib.util

import torch


class BackendError(ValueError):
    """A back end that this machine cannot run."""


def te_missing() -> str | None:
    """Why Transformer Engine cannot be used, or None when it can."""
    if not torch.cuda.is_available():
        return "Transformer Engine needs a CUDA device"
    if importlib.util.find_spec("transformer_engine") is None:
        return "the package transformer_engine is not installed"
    try:
        import transformer_engine.pytorch  # noqa: F401
    except Exception as error:  # a broken install raises anything from OSError to AssertionError
        return f"transformer_engine does not import ({type(error).__name__}: {error})"
    return None
