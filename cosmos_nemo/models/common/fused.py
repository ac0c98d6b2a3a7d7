"""Steps between matrix products: one Triton kernel each on a GPU, PyTorch's operations elsewhere.

Every kernel rounds where the operations do, so that both give the same up to the order of sums. Kernels have
no gradient: they are taken in inference mode alone.

Legend: S tokens, B batch, N heads, K head width, D width.
"""

import importlib.util
import logging
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_nemo.models.common.rope import apply_rope

logger = logging.getLogger(__name__)


@cache
def has_triton() -> bool:
    """Whether kernels can be compiled and run: that takes a C compiler too, and a GPU that Triton knows.

    Tried once, on the current GPU, which must not be recording a graph.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from cosmos_nemo.models.common import fused_kernels

        fused_kernels.try_out()
    except Exception as error:  # from a missing compiler to an unknown GPU: anything
        logger.warning(
            "Triton cannot run a kernel here (%s: %s): PyTorch's operations are used instead, slower",
            type(error).__name__,
            error,
        )
        return False
    return True


def is_power_of_two(width: int) -> bool:
    return width > 0 and width & (width - 1) == 0


def norm_and_rotate(
    x_SBNK: Tensor, norm: nn.Module, cos_S11K: Tensor, sin_S11K: Tensor, *, eps: float
) -> Tensor:
    """norm_heads, rotated (see apply_rope)."""
    if not _has_kernels_for_heads(x_SBNK):
        return apply_rope(norm(x_SBNK), cos_S11K, sin_S11K)
    from cosmos_nemo.models.common import fused_kernels

    return fused_kernels.norm_and_rotate(x_SBNK, cast(Tensor, norm.weight), (cos_S11K, sin_S11K), eps)


def norm_heads(x_SBNK: Tensor, norm: nn.Module, *, eps: float) -> Tensor:
    """RMSNorm of each head; x may be a view. Contiguous on a GPU, in x's dtype."""
    if not _has_kernels_for_heads(x_SBNK):
        return cast(Tensor, norm(x_SBNK))
    from cosmos_nemo.models.common import fused_kernels

    return fused_kernels.norm_and_rotate(x_SBNK, cast(Tensor, norm.weight), None, eps)


def norm_and_modulate(x_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, eps: float) -> Tensor:
    """LayerNorm without parameters, times 1 + scale, plus shift; in x's dtype."""
    if _has_kernels(x_SBD) and x_SBD.is_contiguous():
        from cosmos_nemo.models.common import fused_kernels

        return fused_kernels.norm_and_modulate(x_SBD, shift_BD, 1 + scale_BD, eps)
    normed = F.layer_norm(x_SBD, x_SBD.shape[-1:], eps=eps)
    return torch.addcmul(shift_BD, normed, 1 + scale_BD)


def _has_kernels_for_heads(x_SBNK: Tensor) -> bool:
    width = x_SBNK.shape[-1]
    return _has_kernels(x_SBNK) and is_power_of_two(width) and width >= 16 and x_SBNK.stride(-1) == 1


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and torch.is_inference_mode_enabled() and has_triton()
