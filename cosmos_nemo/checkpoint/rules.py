"""How one tensor of the network is made of a file's tensors, and taken apart into them again.

An `index` has one slice per axis of the network's tensor, in its own coordinates.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.reader.base import Index, full_index

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """`names` are the file's tensors, `shape` is that of the network's."""

    names: tuple[str, ...]
    shape: Shape

    @abstractmethod
    def stored_shape(self) -> Shape:
        """The shape that each of the file's tensors must have, or the first where they differ."""

    def stored_shapes(self) -> tuple[Shape, ...]:
        """The shape of each of the file's tensors, in the order of `names`."""
        return (self.stored_shape(),) * len(self.names)

    @abstractmethod
    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        """The network's tensor, or the part of it at `index`."""

    @abstractmethod
    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The file's tensors, in the order of `names`, that `read` makes `tensor` of."""


@dataclass(frozen=True, kw_only=True)
class Same(Rule):
    """Stored as it is."""

    def stored_shape(self) -> Shape:
        return self.shape

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        return checkpoint.read(self.names[0], index)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,)


@dataclass(frozen=True, kw_only=True)
class StackedLayer(Rule):
    """Entry `layer` of a tensor that holds all layers along an axis of its own, the first."""

    layer: int
    num_layers: int

    def stored_shape(self) -> Shape:
        return (self.num_layers, *self.shape)

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        return checkpoint.read(self.names[0], (slice(self.layer, self.layer + 1), *index))[0]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor[None],)


@dataclass(frozen=True, kw_only=True)
class InterleavedHeads(Rule):
    """Projections joined head by head: rows q of head 0, k of head 0, v of head 0, q of head 1, ...

    Along the first axis an `index` must take whole heads.
    """

    head_dim: int

    def stored_shape(self) -> Shape:
        return (self.shape[0] // len(self.names), *self.shape[1:])

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        rows, columns = full_index(index, shape=self.shape)
        count = len(self.names)
        assert rows.start % (count * self.head_dim) == rows.stop % (count * self.head_dim) == 0, (
            "a head is cut"
        )
        own_rows = slice(rows.start // count, rows.stop // count)
        parts = [checkpoint.read(name, (own_rows, columns)) for name in self.names]
        return rearrange(parts, "part (head row) column -> (head part row) column", row=self.head_dim)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        pattern = "(head part row) column -> part (head row) column"
        return tuple(rearrange(tensor, pattern, part=len(self.names), row=self.head_dim))


@dataclass(frozen=True, kw_only=True)
class GroupedHeads(Rule):
    """Queries, keys and values joined group by group: rows of a group's query heads, of its key, its value.

    `names` are the three projections, the last two of `num_groups` heads. Along the first axis an `index`
    must take whole groups.
    """

    head_dim: int
    num_groups: int

    @property
    def _rows(self) -> tuple[int, int, int]:
        """Of one group, in each of the file's tensors."""
        return (self.shape[0] // self.num_groups - 2 * self.head_dim, self.head_dim, self.head_dim)

    def stored_shape(self) -> Shape:
        return self.stored_shapes()[0]

    def stored_shapes(self) -> tuple[Shape, ...]:
        return tuple((self.num_groups * rows, *self.shape[1:]) for rows in self._rows)

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        rows, columns = full_index(index, shape=self.shape)
        size = sum(self._rows)
        assert rows.start % size == rows.stop % size == 0, "a group is cut"
        first, end = rows.start // size, rows.stop // size
        parts = [
            rearrange(
                checkpoint.read(name, (slice(first * own, end * own), columns)),
                "(group row) column -> group row column",
                row=own,
            )
            for name, own in zip(self.names, self._rows, strict=True)
        ]
        return rearrange(torch.cat(parts, dim=1), "group row column -> (group row) column")

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        groups = rearrange(tensor, "(group row) column -> group row column", group=self.num_groups)
        parts = groups.split(self._rows, dim=1)
        return tuple(rearrange(part, "group row column -> (group row) column") for part in parts)


@dataclass(frozen=True, kw_only=True)
class JoinedRows(Rule):
    """One tensor after the other along the first axis."""

    def stored_shape(self) -> Shape:
        return (self.shape[0] // len(self.names), *self.shape[1:])

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        return torch.cat([checkpoint.read(name) for name in self.names])[index]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.chunk(len(self.names))


@dataclass(frozen=True, kw_only=True)
class BlockDiagonal(Rule):
    """Blocks along the diagonal of a matrix that is zero elsewhere."""

    def stored_shape(self) -> Shape:
        rows, columns = self.shape
        return (rows // len(self.names), columns // len(self.names))

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        return torch.block_diag(*(checkpoint.read(name) for name in self.names))[index]

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        if self.is_dense(tensor):
            raise CheckpointError(
                f"{self.names[0]} cannot hold this matrix: post-training made the blocks beside its diagonal "
                "non-zero, which only NeMo's layout and safetensors keep. Convert with --to nemo"
            )
        blocks = self._blocks(tensor)
        return tuple(blocks[i, i] for i in range(len(self.names)))

    def is_dense(self, tensor: Tensor) -> bool:
        """Whether there is something beside the diagonal's blocks."""
        count, blocks = len(self.names), self._blocks(tensor)
        return any(bool(blocks[i, j].any()) for i in range(count) for j in range(count) if i != j)

    def _blocks(self, tensor: Tensor) -> Tensor:
        count = len(self.names)
        return rearrange(tensor, "(i row) (j column) -> i j row column", i=count, j=count)
