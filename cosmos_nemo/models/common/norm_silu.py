"""The norms of video tokenizers, each with the SiLU that follows it.

On a GPU, in inference mode, one Triton kernel each for a clip that lies in memory with its channels last;
PyTorch's operations elsewhere. Kernels compute in float32 and round once, where the operations round several
times.

Legend: B batch, C channels, T frames, H W rows and columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_nemo.models.common.fused import has_triton
from cosmos_nemo.models.common.volumes import has_channels_last, in_memory_as


def group_norm_silu(x_BCTHW: Tensor, norm: nn.GroupNorm, *, silu: bool = True) -> Tensor:
    """GroupNorm of every frame by itself, in a single group; without `silu` the norm alone."""
    assert norm.num_groups == 1, "a norm of several groups"
    if _has_kernels(x_BCTHW):
        from cosmos_nemo.models.common import norm_silu_kernels

        return norm_silu_kernels.group_norm_silu(x_BCTHW, norm.weight, norm.bias, norm.eps, silu)
    frames = norm(x_BCTHW.transpose(1, 2).flatten(0, 1))
    normed = in_memory_as(x_BCTHW, frames.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2))
    return F.silu(normed, inplace=True) if silu else normed


def rms_norm_silu(x_BCTHW: Tensor, gamma_C: Tensor, *, silu: bool = True) -> Tensor:
    """Every pixel's channels divided by their root mean square, times gamma; without `silu` that alone."""
    if _has_kernels(x_BCTHW):
        from cosmos_nemo.models.common import norm_silu_kernels

        return norm_silu_kernels.rms_norm_silu(x_BCTHW, gamma_C, silu)
    channels = x_BCTHW.shape[1]
    wide = x_BCTHW.float() if x_BCTHW.dtype == torch.bfloat16 else x_BCTHW
    normed = F.normalize(wide, dim=1).to(x_BCTHW.dtype) * channels**0.5 * gamma_C.view(channels, 1, 1, 1)
    return F.silu(normed, inplace=True) if silu else normed


def _has_kernels(x_BCTHW: Tensor) -> bool:
    return (
        x_BCTHW.is_cuda
        and torch.is_inference_mode_enabled()
        and has_channels_last(x_BCTHW)
        and x_BCTHW.numel() > 0
        and has_triton()
    )
