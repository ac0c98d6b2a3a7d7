"""Triton kernels of norm_silu.py. Imported only where Triton is.

All take clips whose channels lie together: frame by frame, pixel by pixel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 16_384
"""That a program sums up or writes."""
_PIXELS = 32


def group_norm_silu(x_BCTHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, silu: bool) -> Tensor:
    """Means and sums of squares of pieces of each frame, put together, and then the norm."""
    batch, channels, frames, height, width = x_BCTHW.shape
    size, out = channels * height * width, torch.empty_like(x_BCTHW)
    pieces, many = triton.cdiv(size, _VALUES), batch * frames
    moments = torch.empty(2, many, pieces, dtype=torch.float32, device=x_BCTHW.device)
    _moments[(pieces, many)](x_BCTHW, *moments, size, VALUES=_VALUES, num_warps=8)
    counts = torch.full((pieces,), float(_VALUES), device=x_BCTHW.device)
    counts[-1] = size - (pieces - 1) * _VALUES
    means, squares = moments
    mean = (means * (counts / size)).sum(1)
    variance = (squares + counts * (means - mean[:, None]).square()).sum(1) / size
    _normalize[(pieces, many)](
        *(x_BCTHW, mean, (variance + eps).rsqrt(), weight_C, bias_C, out, size),
        CHANNELS=channels,
        VALUES=_VALUES,
        SILU=silu,
        num_warps=8,
    )
    return out


def rms_norm_silu(x_BCTHW: Tensor, gamma_C: Tensor, silu: bool) -> Tensor:
    channels, out = x_BCTHW.shape[1], torch.empty_like(x_BCTHW)
    pixels = x_BCTHW.numel() // channels
    _rms_norm_silu[(triton.cdiv(pixels, _PIXELS),)](
        *(x_BCTHW, gamma_C.contiguous(), out, pixels),
        CHANNELS=channels,
        BLOCK=triton.next_power_of_2(channels),
        PIXELS=_PIXELS,
        SILU=silu,
        num_warps=4,
    )
    return out


@triton.jit
def _moments(x, means, squares, size, VALUES: tl.constexpr):
    piece, frame = tl.program_id(0), tl.program_id(1).to(tl.int64)
    places = piece * VALUES + tl.arange(0, VALUES)
    inside = places < size
    value = tl.load(x + frame * size + places, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / tl.minimum(size - piece * VALUES, VALUES)
    centred = tl.where(inside, value - mean, 0.0)
    target = frame * tl.num_programs(0) + piece
    tl.store(means + target, mean)
    tl.store(squares + target, tl.sum(centred * centred, 0))


@triton.jit
def _normalize(
    x, mean, factor, weight, bias, out, size,
    CHANNELS: tl.constexpr, VALUES: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(1).to(tl.int64)
    places = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    inside, channel = places < size, places % CHANNELS
    value = tl.load(x + frame * size + places, mask=inside, other=0.0).to(tl.float32)
    value = (value - tl.load(mean + frame)) * tl.load(factor + frame)
    value = value * tl.load(weight + channel).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + frame * size + places, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_silu(
    x, gamma, out, num_pixels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    pixels = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channels = tl.arange(0, BLOCK)
    inside = (pixels < num_pixels)[:, None] & (channels < CHANNELS)[None, :]
    places = pixels[:, None] * CHANNELS + channels[None, :]
    value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(value * value, 1)), 1e-12)  # as torch's normalize has it
    factor = tl.sqrt(CHANNELS * 1.0) / length
    scale = tl.load(gamma + channels, mask=channels < CHANNELS, other=0.0).to(tl.float32)
    value = value * factor[:, None] * scale[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(out + places, value.to(out.dtype.element_ty), mask=inside)
