"""FlashAttention 3 (arXiv:2407.08608), where it is installed: the fastest exact attention of a Hopper GPU.

Taken for inference in bfloat16, and for --precision fp8. The torch back end does without it elsewhere.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_MODULES = ("flash_attn_3.flash_attn_interface", "flash_attn_interface", "fa3_fwd_interface")
"""As its own setup.py installs it now, as it did before, and the wheel fa3-fwd on PyPI."""
_LARGEST_HEAD = 256


@cache
def flash_attention_3() -> Callable[..., Any] | None:
    """Its flash_attn_func, or None where it is not installed, does not import, or the GPU is no Hopper."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        return None
    for name in _MODULES:
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            continue
        try:
            function: Callable[..., Any] = importlib.import_module(name).flash_attn_func
        except ModuleNotFoundError as error:
            if error.name != name:  # something that it needs
                _warn(package, error)
            continue
        except Exception as error:  # built for another PyTorch or CUDA: from ImportError to OSError
            _warn(package, error)
            continue
        return function
    return None


def serves(x_SBNK: Tensor) -> bool:
    """Whether FlashAttention 3 can attend with such queries here. It is asked for no gradients."""
    width = x_SBNK.shape[-1]
    return (
        x_SBNK.is_cuda
        and x_SBNK.dtype == torch.bfloat16
        and torch.is_inference_mode_enabled()
        and width % 16 == 0
        and width <= _LARGEST_HEAD
        and flash_attention_3() is not None
    )


def attend(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor, **scales: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) v without mask, [S, B, N, K], bfloat16; only where it `serves`.

    Any of the three may be a view with the heads' values side by side. scales: q_descale, k_descale and
    v_descale, float32 [B, N], with which q, k and v in E4M3 are to be multiplied.
    """
    flash_attn_func = flash_attention_3()
    assert flash_attn_func is not None
    found = flash_attn_func(*(part.transpose(0, 1) for part in (q_SBNK, k_LBNK, v_LBNK)), **scales)
    out_BSNK: Tensor = found[0] if isinstance(found, tuple) else found  # older ones give sums of weights too
    return out_BSNK.transpose(0, 1)


def _warn(package: str, error: Exception) -> None:
    logger.warning(
        "FlashAttention 3 (%s) is installed but does not import (%s: %s): it is done without",
        *(package, type(error).__name__, error),
    )
