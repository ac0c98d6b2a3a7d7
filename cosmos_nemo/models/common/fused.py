"""Steps between matrix products: one Triton kernel each on a GPU, PyTorch's operations elsewhere.

Every kernel rounds where the operations do, so that both give the same up to the order of sums. Kernels have
no gradient: they are taken in inference mode alone.

Legend: S tokens, B batch, N heads, K head width, D width, R runs of tokens, or rows.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_nemo.models.common.rope import apply_rope

logger = logging.getLogger(__name__)

_SMALLEST = 2.0**-100
"""What is smaller is rounded to nothing."""


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


class Runs(NamedTuple):
    """Runs of tokens of this rank that have modulations of their own, rows [R, B, D], one after the other."""

    lengths: list[int]
    row_of_token: Tensor
    """The same, said of each token: int32 [S]."""


def runs_of(lengths: list[int], device: torch.device) -> Runs:
    rows = [
        torch.full((length,), row, dtype=torch.int32, device=device) for row, length in enumerate(lengths)
    ]
    return Runs(lengths, torch.cat(rows))


def norm_and_modulate(
    x_SBD: Tensor, shift_BD: Tensor, scale_BD: Tensor, *, eps: float, runs: Runs | None = None
) -> Tensor:
    """LayerNorm without parameters, times 1 + scale, plus shift; in x's dtype.

    shift and scale (and gate, below): [B, D], or [R, B, D] with `runs`.
    """
    if _has_kernels_for_tokens(x_SBD):
        from cosmos_nemo.models.common import fused_kernels

        by = (None, shift_BD, 1 + scale_BD)
        return fused_kernels.add_and_modulate(x_SBD, None, by, _rows(runs), eps)[1]
    return _in_runs(partial(_norm_and_modulate, eps=eps), runs, (shift_BD, scale_BD), x_SBD)


def add_gated(x_SBD: Tensor, change_SBD: Tensor, gate_BD: Tensor, *, runs: Runs | None = None) -> Tensor:
    """x + gate * change."""
    if _has_kernels_for_tokens(x_SBD, change_SBD):
        from cosmos_nemo.models.common import fused_kernels

        by = (gate_BD, None, None)
        return fused_kernels.add_and_modulate(x_SBD, change_SBD, by, _rows(runs), 0.0)[0]
    return _in_runs(_add_gated, runs, (gate_BD,), x_SBD, change_SBD)


def add_and_modulate(
    x_SBD: Tensor,
    change_SBD: Tensor,
    gate_BD: Tensor | None,
    shift_BD: Tensor,
    scale_BD: Tensor,
    *,
    eps: float,
    runs: Runs | None = None,
) -> tuple[Tensor, Tensor]:
    """add_gated (without a gate: x + change, whose batch may be 1), and norm_and_modulate of it."""
    if _has_kernels_for_tokens(x_SBD, change_SBD):
        from cosmos_nemo.models.common import fused_kernels

        by = (gate_BD, shift_BD, 1 + scale_BD)
        return fused_kernels.add_and_modulate(x_SBD, change_SBD, by, _rows(runs), eps)
    added = x_SBD + change_SBD if gate_BD is None else add_gated(x_SBD, change_SBD, gate_BD, runs=runs)
    return added, norm_and_modulate(added, shift_BD, scale_BD, eps=eps, runs=runs)


class Rounded(NamedTuple):
    """values * scale, in 8 bits."""

    values: Tensor
    """float8_e4m3fn."""
    scale: Tensor
    """float32 powers of two: [R, 1] of rows, [B, N] of heads."""

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The tensor that they stand for."""
        scale = self.scale if self.values.ndim == 2 else self.scale[:, :, None]
        return (self.values.float() * scale).to(dtype)


def round_rows(x_RD: Tensor, *, gelu: bool = False) -> Rounded:
    """Each row, or its GELU (the exact one, in float32), by its own largest value."""
    if _has_kernels(x_RD) and x_RD.is_contiguous():
        from cosmos_nemo.models.common import fused_kernels

        return Rounded(*fused_kernels.round_rows(x_RD, gelu))
    x_RD = F.gelu(x_RD.float()) if gelu else x_RD
    scale = _scale_for(torch.linalg.vector_norm(x_RD.float(), torch.inf, dim=1, keepdim=True))
    return Rounded((x_RD / scale).to(torch.float8_e4m3fn), scale)


def round_heads(x_SBNK: Tensor) -> Rounded:
    """Each head by its own largest value over all tokens; x may be a view."""
    if _has_kernels_for_heads(x_SBNK):
        from cosmos_nemo.models.common import fused_kernels

        return Rounded(*fused_kernels.round_heads(x_SBNK))
    scale = _scale_for(torch.linalg.vector_norm(x_SBNK.float(), torch.inf, dim=(0, 3)))
    return Rounded((x_SBNK / scale[:, :, None]).to(torch.float8_e4m3fn), scale)


def _scale_for(largest: Tensor) -> Tensor:
    """The smallest power of two that brings so large values to 448 at most, the largest of E4M3.

    448 is 1.75 * 2^8: the exponent is the value's own, or one more where its fraction is beyond 1.75.
    """
    bits = largest.clamp_min(_SMALLEST).view(torch.int32)
    return ((bits + 0x1FFFFF & 0x7F800000) - (8 << 23)).view(torch.float32)


def _norm_and_modulate(shift_BD: Tensor, scale_BD: Tensor, x_SBD: Tensor, *, eps: float) -> Tensor:
    normed = F.layer_norm(x_SBD, x_SBD.shape[-1:], eps=eps)
    return torch.addcmul(shift_BD, normed, 1 + scale_BD)


def _add_gated(gate_BD: Tensor, x_SBD: Tensor, change_SBD: Tensor) -> Tensor:
    return torch.addcmul(x_SBD, gate_BD, change_SBD)


def _in_runs(
    function: Callable[..., Tensor],
    runs: Runs | None,
    by: Sequence[Tensor],
    *tensors_SBD: Tensor,
) -> Tensor:
    """function(*by, *tensors), of each run of tokens with its row of `by`."""
    if runs is None:
        return function(*by, *tensors_SBD)
    pieces = zip(*(tensor.split(runs.lengths) for tensor in tensors_SBD), strict=True)
    rows = zip(*by, strict=True)
    return torch.cat([function(*row, *piece) for row, piece in zip(rows, pieces, strict=True)])


def _rows(runs: Runs | None) -> Tensor | None:
    return None if runs is None else runs.row_of_token


def _has_kernels_for_tokens(*tensors_SBD: Tensor) -> bool:
    return all(_has_kernels(tensor) and tensor.is_contiguous() for tensor in tensors_SBD)


def _has_kernels_for_heads(x_SBNK: Tensor) -> bool:
    width = x_SBNK.shape[-1]
    return _has_kernels(x_SBNK) and is_power_of_two(width) and width >= 16 and x_SBNK.stride(-1) == 1


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and torch.is_inference_mode_enabled() and has_triton()
