"""How the next token is drawn from a network's logits.

B videos, V tokens of the vocabulary, N tokens to draw. Probabilities and their running sums are float64, so
that no kernel's order of adding them up decides which token is drawn. Nothing here waits for a GPU, and all
shapes are fixed, so that a CUDA graph can hold it.

A token can be drawn from V exponential numbers, as the released scripts do (`draw`), or from a single uniform
one (`draw_by_uniforms`). The distribution is the same, and the videos of a released seed can be repeated with
neither. Generation takes the uniform number: those of a whole video are 80 kB instead of 2.6 GB of
exponential ones. They can therefore be drawn ahead, on the host and for each video by itself, and are the
same on every device, for every number of ranks and beside any other videos of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_LOWEST_TEMPERATURE = 1e-5
"""Anything lower, but 0, counts as this. spec/predict1-autoregressive.md 4.3."""


class TokenSamplingError(ValueError):
    """A way to draw tokens that does not exist."""


@dataclass(frozen=True)
class TokenSampling:
    """How to draw a token; the defaults are those of the released scripts.

    temperature: the logits are divided by it; 0 takes the likeliest token, whatever else is asked for.
    top_p: the likeliest tokens count until they have more than this probability together; 0 keeps one, 1 all.
    top_k: so many tokens count, and those as likely as the last. At most one of the two; without, all count.
    TokenSamplingError for what is out of range.
    """

    temperature: float = 1.0
    top_p: float | None = 0.8
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise TokenSamplingError(
                f"temperature {self.temperature} is not a number from 0 on. "
                "Pass 1 for the network's own probabilities, or 0 for the likeliest token."
            )
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise TokenSamplingError(
                f"top_p {self.top_p} is no probability: pass a number from 0 to 1. The models use 0.8."
            )
        if self.top_k is not None and self.top_k < 1:
            raise TokenSamplingError(
                f"top_k {self.top_k} leaves no token to draw: pass 1 or more, or None for all."
            )
        if self.top_p is not None and self.top_k is not None:
            raise TokenSamplingError(
                f"top_p {self.top_p} and top_k {self.top_k} exclude each other: pass None for one of them."
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def probabilities(logits_BV: Tensor, sampling: TokenSampling) -> Tensor:
    """What each token is drawn with, [B, V] float64: rows sum to 1, and tokens that do not count have 0."""
    if sampling.is_greedy:
        likeliest_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_BV, dtype=torch.float64).scatter_(-1, likeliest_B1, 1.0)
    counted = _counted(logits_BV, sampling)
    if counted.tokens_BV is None:
        return counted.probabilities_BV
    return torch.zeros_like(counted.probabilities_BV).scatter_(
        -1, counted.tokens_BV, counted.probabilities_BV
    )


def draw(logits_BV: Tensor, sampling: TokenSampling, exponentials_BV: Tensor) -> Tensor:
    """Tokens [B], int64: of each video the one whose probability over an exponential number is largest.

    exponentials_BV: independent draws of the unit exponential distribution; with top_p they belong to the
    tokens from the likeliest on, else to those of the vocabulary in its order. Without effect at
    temperature 0. spec/predict1-autoregressive.md 4.3.
    """
    if sampling.is_greedy:
        return logits_BV.argmax(dim=-1)
    counted = _counted(logits_BV, sampling)
    # A zero, which float32 may hold, would let a token win that does not count.
    exponentials_BV = exponentials_BV.double().clamp_min(torch.finfo(torch.float32).tiny)
    return counted.tokens_at((counted.probabilities_BV / exponentials_BV).argmax(dim=-1, keepdim=True))


def draw_by_uniforms(logits_BV: Tensor, sampling: TokenSampling, uniforms_B: Tensor) -> Tensor:
    """Tokens [B], int64: of each video the one at which its running probability first exceeds its number.

    uniforms_B: float64, from 0 to below 1. With top_p the tokens are taken from the likeliest on, else in
    the order of the vocabulary. Without effect at temperature 0. Logits that are NaN give some token.
    """
    if sampling.is_greedy:
        return logits_BV.argmax(dim=-1)
    counted = _counted(logits_BV, sampling)
    running_BV = counted.probabilities_BV.cumsum(dim=-1)
    # Of what the sum came to, which may be less than 1: the number must stay below it.
    wanted_B1 = uniforms_B[:, None] * running_BV[:, -1:]
    places_B1 = torch.searchsorted(running_BV, wanted_B1, right=True)
    return counted.tokens_at(places_B1.clamp(max=logits_BV.shape[-1] - 1))


def draw_uniforms(seeds: Sequence[int], num_tokens: int) -> Tensor:
    """Numbers from 0 to below 1, [N, B] float64 on the CPU: a column for each video, of its seed alone.

    Seeds: 0 to 2^32 - 1. The first numbers are the same however many are drawn.
    """
    columns = [
        torch.rand(num_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(columns, dim=1)


class _Counted(NamedTuple):
    """Probabilities, 0 for what does not count, and whose they are where that is not vocabulary order."""

    probabilities_BV: Tensor
    tokens_BV: Tensor | None = None

    def tokens_at(self, places_B1: Tensor) -> Tensor:
        tokens_B1 = places_B1 if self.tokens_BV is None else self.tokens_BV.gather(-1, places_B1)
        return tokens_B1[:, 0]


def _counted(logits_BV: Tensor, sampling: TokenSampling) -> _Counted:
    temperature = max(sampling.temperature, _LOWEST_TEMPERATURE)
    if sampling.top_p is not None:
        return _likeliest(logits_BV, temperature, sampling.top_p)
    scaled_BV = logits_BV.double() / temperature
    if sampling.top_k is not None:
        lowest_B1 = scaled_BV.topk(min(sampling.top_k, scaled_BV.shape[-1]), dim=-1).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < lowest_B1, -math.inf)
    return _Counted(scaled_BV.softmax(dim=-1))


def _likeliest(logits_BV: Tensor, temperature: float, top_p: float) -> _Counted:
    """A token counts if those before it have no more than top_p together."""
    # bfloat16 has many equal logits: a stable order is the same on every device.
    sorted_BV, tokens_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    likely_BV = _spread_softmax(sorted_BV.double() / temperature)
    before_BV = likely_BV.cumsum(dim=-1) - likely_BV
    kept_BV = likely_BV.masked_fill(before_BV > top_p, 0.0)
    return _Counted(kept_BV / kept_BV.sum(dim=-1, keepdim=True), tokens_BV)


def _spread_softmax(sorted_BV: Tensor) -> Tensor:
    """Of rows that begin with their largest: torch's softmax would leave a row to one block of a GPU."""
    powers_BV = (sorted_BV - sorted_BV[:, :1]).exp()
    return powers_BV / powers_BV.sum(dim=-1, keepdim=True)
