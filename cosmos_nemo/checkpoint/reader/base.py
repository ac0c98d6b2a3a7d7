"""What every checkpoint layout looks like once it is open: named tensors, each read slice by slice."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Index = tuple[slice, ...]


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another model; the message says what to do."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not in memory yet.

    `load(index)` makes the part that `index` names: one slice with bounds and step 1 per axis.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[Index], Tensor]

    @staticmethod
    def of(tensor: Tensor) -> "LazyTensor":
        """`tensor` itself, already in memory (or memory-mapped)."""
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda index: tensor[index])

    def read(self, index: Index = ()) -> Tensor:
        """The part of the tensor at `index` (missing trailing axes are whole)."""
        return self.load(full_index(index, shape=self.shape))


def full_index(index: Index, *, shape: tuple[int, ...]) -> Index:
    """`index` with one bounded slice of step 1 per axis of `shape`."""
    assert len(index) <= len(shape), f"{len(index)} slices for the shape {shape}"
    whole = (slice(None),) * (len(shape) - len(index))
    bounds = [part.indices(size) for part, size in zip(index + whole, shape, strict=True)]
    assert all(step == 1 for _, _, step in bounds), "a checkpoint is read in steps of 1"
    return tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)


class Checkpoint:
    """The tensors of one checkpoint, whatever its layout; nothing is read before `read`.

    `path` is the file, or the folder in which the files themselves lie (for a NeMo checkpoint its `weights`);
    `layout` is one of "zarr", "torch_dist", "torch", "safetensors", "torchscript".
    """

    def __init__(self, path: Path, *, layout: str, tensors: Mapping[str, LazyTensor]) -> None:
        self.path = path
        self.layout = layout
        self._tensors = {name: tensors[name] for name in sorted(tensors)}

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Number format in the file."""
        return self._tensors[name].dtype

    def read(self, name: str, index: Index = ()) -> Tensor:
        """The tensor, or the part of it at `index`, on the CPU; only the bytes of that part are touched.

        The result may be memory-mapped from the file: copy it before changing it.
        """
        return self._tensors[name].read(index)

    def under(self, prefix: str) -> "Checkpoint":
        """The tensors whose names start with `prefix`, called without it."""
        inside = {name.removeprefix(prefix): self._tensors[name] for name in self._starting_with(prefix)}
        return Checkpoint(self.path, layout=self.layout, tensors=inside)

    def _starting_with(self, prefix: str) -> Iterable[str]:
        return (name for name in self._tensors if name.startswith(prefix))
