"""Finite scalar quantisation (arXiv 2309.15505, appendix A.1; spec/predict1-autoregressive.md, 3).

Each channel c of a code takes one of `levels[c]` values, so that prod(levels) codes are possible; the number
of a code, its id, is written in digits of those bases, the first channel's the lowest. Channels are axis 1: z
and codes are [B, C, ...], ids [B, ...].

Everything is computed in float32, whatever z comes in, as the released code does. A z that bfloat16 has
rounded is off by up to 1 part in 512: beside the boundary of two levels that moves a digit by one, and other
kernels, batches or lengths round otherwise. Ids of a bfloat16 network are therefore repeatable on one kind of
machine only; those of a float32 network agree but for a z within rounding, some 1e-5, of a boundary.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

# How far beyond the outermost level the bound lies, as a part of the range: tanh alone never reaches it.
_MARGIN = 1e-3


def check_levels(levels: Sequence[int]) -> None:
    """ValueError unless each channel has a choice and ids fit into 64 bits."""
    if not levels or min(levels) < 2 or math.prod(levels) >= 2**63:
        raise ValueError(
            f"levels {tuple(levels)} of a discrete tokenizer cannot be: each channel has two values or more, "
            "and their product is the number of ids"
        )


def num_codes(levels: Sequence[int]) -> int:
    """How many codes there are: ids count from 0 up to this."""
    return math.prod(levels)


def bounded(z: Tensor, levels: Sequence[int]) -> Tensor:
    """z squeezed into (-(L - 1) / 2, (L - 1) / 2) and a little beyond, half a level lower for an even L.

    Rounded, it is one of L integers: -2..2 for L = 5, -4..3 for L = 8.
    """
    counts = _per_channel(levels, z).float()
    half_width = (counts - 1) * (1 + _MARGIN) / 2
    offset = (counts % 2 == 0) / 2
    shift = torch.atanh(offset / half_width)
    return torch.tanh(z.float() + shift) * half_width - offset


def nearest_codes(z: Tensor, levels: Sequence[int]) -> Tensor:
    """The code of each z, float32: integers over floor(L / 2), which are -1..1. Halves round to even."""
    return bounded(z, levels).round() / (_per_channel(levels, z) // 2)


def ids_of(codes: Tensor, levels: Sequence[int]) -> Tensor:
    """int64 ids of codes. They may have been rounded to bfloat16: the digits are rounded back."""
    middle = _per_channel(levels, codes) // 2
    digits = (codes.float() * middle).round().long() + middle
    return (digits * _per_channel(_place_values(levels), codes)).sum(dim=1)


def codes_of(ids: Tensor, levels: Sequence[int]) -> Tensor:
    """float32 codes of ids. ValueError for ids that no code has."""
    _check_ids(ids, num_codes(levels))
    ids_B1 = ids.long().unsqueeze(1)
    counts = _per_channel(levels, ids_B1)
    digits = ids_B1 // _per_channel(_place_values(levels), ids_B1) % counts
    middle = counts // 2
    return (digits - middle) / middle


def _place_values(levels: Sequence[int]) -> list[int]:
    return list(accumulate(levels[:-1], mul, initial=1))


def _per_channel(values: Sequence[int], like: Tensor) -> Tensor:
    """int64, shaped to meet axis 1 of `like`.

    Written on the device: a copy from the host's memory cannot be recorded in a CUDA graph.
    """
    filled = [torch.full((), value, device=like.device, dtype=torch.int64) for value in values]
    return torch.stack(filled).view(-1, *(1,) * (like.ndim - 2))


def _check_ids(ids: Tensor, count: int) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids of {ids.dtype} are no ids: they are integers from 0 to {count - 1}")
    if ids.numel() == 0:
        return
    smallest, largest = (int(value) for value in torch.aminmax(ids))
    if smallest < 0 or largest >= count:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(
            f"id {wrong} is no video token: this tokenizer has those from 0 to {count - 1}. Tokens that "
            "begin, end or pad a sequence are not decoded"
        )
