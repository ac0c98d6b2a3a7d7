"""A tensor stored in pieces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader.base import CheckpointError, Index, LazyTensor


@dataclass(frozen=True)
class Chunk:
    """A box of a larger tensor: its first corner, its size, and how its own parts are read."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    load: Callable[[Index], Tensor]

    def overlap(self, index: Index) -> Index | None:
        """The part of `index` inside this box, in coordinates of the whole tensor."""
        corners = zip(index, self.start, self.shape, strict=True)
        inside = [(max(part.start, low), min(part.stop, low + size)) for part, low, size in corners]
        return tuple(slice(*bounds) for bounds in inside) if all(a < b for a, b in inside) else None


def from_chunks(
    chunks: Sequence[Chunk], *, shape: tuple[int, ...], dtype: torch.dtype, name: str
) -> LazyTensor:
    """The tensor that `chunks` make up; CheckpointError if they leave a hole."""
    if sum(prod(chunk.shape) for chunk in chunks) < prod(shape):
        raise CheckpointError(
            f"the pieces of {name} do not fill its shape {shape}: the checkpoint is incomplete"
        )
    return LazyTensor(shape, dtype, lambda index: _assemble(chunks, index, dtype=dtype))


def _assemble(chunks: Sequence[Chunk], index: Index, *, dtype: torch.dtype) -> Tensor:
    touched = [(chunk, inside) for chunk in chunks if (inside := chunk.overlap(index)) is not None]
    if len(touched) == 1:
        chunk, inside = touched[0]
        return chunk.load(_shift(inside, origin=chunk.start))
    whole = torch.empty([part.stop - part.start for part in index], dtype=dtype)
    corner = tuple(part.start for part in index)
    for chunk, inside in touched:
        whole[_shift(inside, origin=corner)] = chunk.load(_shift(inside, origin=chunk.start))
    return whole


def _shift(index: Index, *, origin: tuple[int, ...]) -> Index:
    return tuple(slice(p.start - low, p.stop - low) for p, low in zip(index, origin, strict=True))
