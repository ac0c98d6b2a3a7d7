"""The checks of `cosmos-nemo verify`: each runs modules of this package on a reference file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Case = dict[str, Any]
"""The .json of a reference file."""

Tensors = dict[str, Tensor]
"""All tensors of a reference file by their full names: weights.*, inputs.*, outputs.*"""

Outputs = Iterator[tuple[str, Tensor]]
"""Names without `outputs.`, and what our code makes of them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a check is run. `folder` holds the reference file and those its `weights_from` names."""

    folder: Path
    weights: Path | None
    """A checkpoint to use in place of the weights inside the reference file."""
    backend: str
    dtype: torch.dtype
    device: torch.device
    only: tuple[str, ...] = ("*",)
    """Globs of the outputs that are asked for; a check may leave out what costs much and is not."""

    def wants(self, output: str) -> bool:
        return any(fnmatchcase(output, glob) for glob in self.only)


CheckFunction = Callable[[Case, Tensors, Options], Outputs]
