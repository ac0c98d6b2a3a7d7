"""Values that lie in a file as they lie in memory: memory-mapped, so a slice touches only its own pages."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader.base import CheckpointError, Index

# numpy has no bfloat16 or float8: values travel as integers of the same width.
_INTEGER_OF_WIDTH = {width: np.dtype(f"<i{width}") for width in (1, 2, 4, 8)}


@dataclass(frozen=True, kw_only=True)
class RawBlock:
    """A tensor in a file: little-endian values from byte `offset` on, `strides` counted in values."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def contiguous(path: Path, *, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> "RawBlock":
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return RawBlock(path=path, offset=offset, shape=shape, strides=strides, dtype=dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes from the first value to the last."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    def read(self, index: Index) -> Tensor:
        """The part at `index`: a private mapping of the file, or a copy where the file is not aligned."""
        width = self.dtype.itemsize
        if self.num_bytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)[index]
        bytes_ = np.memmap(self.path, np.uint8, mode="c", offset=self.offset, shape=(self.num_bytes,))
        strides = tuple(stride * width for stride in self.strides)
        whole: np.ndarray[Any, Any] = np.ndarray(
            self.shape, _INTEGER_OF_WIDTH[width], buffer=bytes_, strides=strides
        )
        values = np.asarray(whole[index])
        if not values.flags.aligned:
            values = values.copy()
        return torch.from_numpy(values).view(self.dtype)


def check_length(path: Path, *, needed: int) -> None:
    """CheckpointError if the file is missing or shorter than `needed` bytes."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: copy or download the checkpoint again") from None
    if size < needed:
        raise CheckpointError(
            f"{path} is truncated: it has {size:,} of at least {needed:,} bytes. Copy or download it again"
        )
