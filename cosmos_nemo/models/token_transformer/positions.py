"""Where the tokens of a video lie: rotary angles, and an embedding where the model attends to text.

Legend: S tokens in raster order (frame slowest, then row, then column), D width, K head width, F frequencies.
With text the first token only begins the video: it is at no place, its angles and its embedding are zero, and
so are those of tokens beyond the video (spec/predict1-autoregressive.md, 1.1 and 1.2).
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from cosmos_nemo.catalog import TokenShape

_ABSOLUTE_BASE = 10000.0


class Positions(NamedTuple):
    """Of S tokens: cosines and sines of the rotary angles, float32 [S, 1, 1, K], and what is added to the
    hidden state before every layer, [S, 1, D], if the model adds anything."""

    cos: Tensor
    sin: Tensor
    absolute: Tensor | None

    def first(self, count: int) -> "Positions":
        """Of the first tokens; views."""
        absolute = None if self.absolute is None else self.absolute[:count]
        return Positions(self.cos[:count], self.sin[:count], absolute)

    def at(self, position: Tensor) -> "Positions":
        """Of the one token at `position`, 0-dim on the device; no number of Python's depends on it."""
        cos, sin = (table.index_select(0, position[None]) for table in (self.cos, self.sin))
        absolute = None if self.absolute is None else self.absolute.index_select(0, position[None])
        return Positions(cos, sin, absolute)


def token_positions(
    shape: TokenShape, length: int, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> Positions:
    """Of the first `length` tokens of a video; the embedding in `dtype`."""
    angles_SK = rotary_angles(shape, length).to(device)
    absolute_SD = absolute_embedding(shape, length).to(device, dtype) if shape.takes_text else None
    return Positions(
        cos=angles_SK.cos()[:, None, None],
        sin=angles_SK.sin()[:, None, None],
        absolute=None if absolute_SD is None else absolute_SD[:, None],
    )


def inverse_frequencies(shape: TokenShape) -> tuple[Tensor, Tensor]:
    """Radians per frame, and per row or column: float32, fastest first."""
    dim_T, dim_HW = _split(shape.head_dim)
    frames, rows, _ = shape.rope_original_THW
    temporal = _scaled(_powers(shape.rope_theta, dim_T), original=frames, shape=shape)
    return temporal, _scaled(_powers(shape.rope_theta, dim_HW), original=rows, shape=shape)


def rotary_angles(shape: TokenShape, length: int) -> Tensor:
    """[length, K] float32 in radians; the second half of the last axis repeats the first."""
    temporal, spatial = inverse_frequencies(shape)
    rates = (temporal, spatial, spatial)
    axes = [
        torch.outer(torch.arange(n).float(), rate) for n, rate in zip(shape.latent_THW, rates, strict=True)
    ]
    half_SF = _of_tokens(_over_the_video(axes), shape, length)
    return torch.cat([half_SF, half_SF], dim=-1)


def absolute_embedding(shape: TokenShape, length: int) -> Tensor:
    """[length, D] bfloat16, the precision that it has in training: sines, then cosines, of each axis.

    Worked out in float64.
    """
    dim_T, dim_HW = _split(shape.hidden_size)
    axes = []
    for count, dim in zip(shape.latent_THW, (dim_T, dim_HW, dim_HW), strict=True):
        places = torch.arange(count, dtype=torch.float64)
        angles = torch.outer(places, _powers(_ABSOLUTE_BASE, dim, dtype=torch.float64))
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=-1).bfloat16())
    return _of_tokens(_over_the_video(axes), shape, length)


def _split(width: int) -> tuple[int, int]:
    """Channels of the frame's number, and of the row's and of the column's each."""
    dim_HW = width // 6 * 2
    return width - 2 * dim_HW, dim_HW


def _powers(base: float, dim: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """base^(-2i / dim), dim / 2 of them."""
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=dtype) / dim)


def _scaled(rates_F: Tensor, *, original: int, shape: TokenShape) -> Tensor:
    """Low frequencies divided by the model's scale, high ones as they are, blended between (YaRN, Llama 3.1).

    Low and high in turns over `original` places, at which the frequencies were first trained. YaRN's factor
    for the attention is not used: the released models were trained without.
    """
    if shape.rope_scale == 1.0:
        return rates_F
    high, low = (2 * math.pi * beta / original for beta in (shape.rope_beta_fast, shape.rope_beta_slow))
    kept_F = ((rates_F - low) / (high - low)).clamp(0, 1)
    return rates_F * ((1 - kept_F) / shape.rope_scale + kept_F)


def _over_the_video(axes: list[Tensor]) -> Tensor:
    """Tables of frames, rows and columns -> [tokens, all their channels]."""
    of_t, of_h, of_w = axes
    t, h, w = (len(axis) for axis in axes)
    parts = (of_t[:, None, None], of_h[None, :, None], of_w[None, None, :])
    return rearrange(torch.cat([part.expand(t, h, w, -1) for part in parts], dim=-1), "t h w c -> (t h w) c")


def _of_tokens(video_SC: Tensor, shape: TokenShape, length: int) -> Tensor:
    """With zeros for the token that begins the video, if there is one; cut or padded to length."""
    before = 1 if shape.takes_text else 0
    return F.pad(video_SC, (0, 0, before, max(length - before - len(video_SC), 0)))[:length]
