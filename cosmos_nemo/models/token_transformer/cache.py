"""The keys and values of tokens that were already read.

Legend: S tokens, L places of the cache, B batch, M key heads of this tensor parallel rank, K head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_nemo.models.token_transformer.positions import Positions

BUCKET = 1024
"""Decoding attends to this many places, or twice, three times ... as many: one CUDA graph for each."""


def bucket_for(position: int, *, max_length: int) -> int:
    """The least number of places, in steps of BUCKET, that holds this position; the cache's end is a step."""
    return min((position // BUCKET + 1) * BUCKET, max_length)


@dataclass(frozen=True)
class KeyValueCache:
    """Allocated once, for all layers, and used for one video after another: its memory never moves.

    `k` and `v` are [layers, L, B, M, K] and begin as zeros. What lies at places that were not written for
    this video is never attended to. `positions` are those of all places, `places` are 0 .. L - 1 on the
    device.
    """

    k: Tensor
    v: Tensor
    places: Tensor
    positions: Positions

    @property
    def max_length(self) -> int:
        return self.k.shape[1]

    @property
    def batch_size(self) -> int:
        return self.k.shape[2]

    def clear(self) -> None:
        """Zeros everywhere: a place that is not attended to must be finite all the same."""
        self.k.zero_()
        self.v.zero_()

    def fill(self, layer: int, k_SBMK: Tensor, v_SBMK: Tensor) -> None:
        """Writes the places 0 .. S - 1."""
        self.k[layer, : len(k_SBMK)].copy_(k_SBMK)
        self.v[layer, : len(v_SBMK)].copy_(v_SBMK)

    def write(self, layer: int, k_1BMK: Tensor, v_1BMK: Tensor, *, position: Tensor) -> None:
        """Writes the place `position`, 0-dim on the device."""
        self.k[layer].index_copy_(0, position[None], k_1BMK)
        self.v[layer].index_copy_(0, position[None], v_1BMK)

    def first(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `count` places, contiguous."""
        return self.k[layer, :count], self.v[layer, :count]


def empty_cache(
    size_LBMK: tuple[int, int, int, int], *, num_layers: int, positions: Positions, dtype: torch.dtype
) -> KeyValueCache:
    """On the device of `positions`."""
    device = positions.cos.device
    k, v = (torch.zeros(num_layers, *size_LBMK, device=device, dtype=dtype) for _ in range(2))
    return KeyValueCache(k, v, torch.arange(size_LBMK[0], device=device), positions)
