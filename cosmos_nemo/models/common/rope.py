"""Rotary position embedding over a video's patches, with NTK extrapolation and a frame-rate term.

Axes: S tokens (frame slowest, then row, then column), B batch, N heads, K head width.
"""

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor


def rope_angles(
    grid_THW: tuple[int, int, int],
    *,
    head_dim: int,
    ratios_THW: tuple[float, float, float],
    fps: float | None,
    base_fps: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Angles [S, 1, 1, head_dim], float32 in radians, for a grid of T x H x W patches.

    The second half of the last axis repeats the first (half-split rotation). fps None counts
    frames as they are. dtype bfloat16 gives the angles of NVIDIA's released scripts, which compute them in
    it; they are off by up to 0.3 rad. ValueError for a head_dim, fps or grid without a table.
    spec/predict1-diffusion.md 1.3 and 0.2.
    """
    _check(grid_THW, head_dim=head_dim, fps=fps)
    T, H, W = grid_THW
    dim_HW = head_dim // 6 * 2
    times_T = torch.arange(T, dtype=dtype)
    if fps is not None:
        times_T = times_T / torch.tensor(fps, dtype=dtype) * base_fps
    angles_TF = _axis_angles(times_T, dim=head_dim - 2 * dim_HW, ratio=ratios_THW[0])
    angles_HF = _axis_angles(torch.arange(H, dtype=dtype), dim=dim_HW, ratio=ratios_THW[1])
    angles_WF = _axis_angles(torch.arange(W, dtype=dtype), dim=dim_HW, ratio=ratios_THW[2])
    half_THWF = torch.cat(
        [
            angles_TF[:, None, None].expand(T, H, W, -1),
            angles_HF[None, :, None].expand(T, H, W, -1),
            angles_WF[None, None, :].expand(T, H, W, -1),
        ],
        dim=-1,
    )
    half_S11F = rearrange(half_THWF, "t h w f -> (t h w) 1 1 f")
    return torch.cat([half_S11F, half_S11F], dim=-1).float()


def apply_rope(x_SBNK: Tensor, cos_S11K: Tensor, sin_S11K: Tensor) -> Tensor:
    """x rotated by the angles whose cosine and sine (float32) are given; computed in float32, x's dtype out.

    Half-split: component k turns with component k + K/2.
    """
    rotated: Tensor = _Rotation.apply(x_SBNK, cos_S11K, sin_S11K)
    return rotated


class _Rotation(torch.autograd.Function):
    """Written out, because autograd forbids the `out=` that saves half of the memory traffic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[..., :half], sin[..., :half]
    out = torch.empty_like(x)
    torch.addcmul(first * cos, second, sin, value=-1, out=out[..., :half])
    torch.addcmul(second * cos, first, sin, out=out[..., half:])
    return out


def _axis_angles(positions: Tensor, *, dim: int, ratio: float) -> Tensor:
    # Every operation in the dtype of positions: the rounding of the bfloat16 form is part of it.
    theta = 10000.0 * ratio ** (dim / (dim - 2))
    exponents = (torch.arange(0, dim, 2).float() / dim).to(positions.dtype)
    return torch.outer(positions, 1.0 / theta**exponents)


def _check(grid_THW: tuple[int, int, int], *, head_dim: int, fps: float | None) -> None:
    if head_dim % 2 or head_dim < 12:
        raise ValueError(f"head_dim {head_dim} cannot hold three rotated axes: it must be even, 12 or more.")
    if min(grid_THW) < 1:
        raise ValueError(f"A grid of {grid_THW} patches is empty: frames, rows and columns are 1 or more.")
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps {fps} is not a positive number.")
