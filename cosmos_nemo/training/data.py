"""What the training loop reads: clips as latents and embeddings, in an order that depends on the seed alone.

N clips, M texts, B batch, C channels, T frames of the latent, H W rows and columns, L text length, D text
width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy
import torch
from torch import Tensor

from cosmos_nemo.request import RequestError


class DataError(RequestError):
    """Training data, or videos to make it from, that cannot be used."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some clips of one shape and one frame rate, on the data set's device and in its number format."""

    latent_BCTHW: Tensor
    """Normalised, as the tokenizer made it: not yet times sigma_data."""
    text_BLD: Tensor
    """Zero past each caption's end."""
    fps: float


class Dataset(Protocol):
    """Clips by their number."""

    def __len__(self) -> int: ...

    @property
    def identity(self) -> str:
        """Tells this data from other data, without reading all of it."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips with these numbers, in this order; IndexError for one that does not exist."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """C, T, H, W of every clip."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Clips that all lie in memory, of a GPU too, and share a few texts."""

    latents_NCTHW: Tensor
    texts_MLD: Tensor
    text_of_N: Tensor
    """Which of the M texts belongs to each clip: integers."""
    fps: float

    def __post_init__(self) -> None:
        if self.latents_NCTHW.ndim != 5 or self.texts_MLD.ndim != 3:
            raise DataError(
                f"latents of shape {tuple(self.latents_NCTHW.shape)} and texts of "
                f"{tuple(self.texts_MLD.shape)} are no [N, C, T, H, W] and [M, L, D]"
            )
        if tuple(self.text_of_N.shape) != (len(self),) or len(self) == 0:
            raise DataError(f"{len(self)} clips, but {self.text_of_N.numel()} numbers of their texts")
        least, most = int(self.text_of_N.min()), int(self.text_of_N.max())
        if least < 0 or most >= len(self.texts_MLD):
            raise DataError(f"numbers of texts from {least} to {most}, but there are {len(self.texts_MLD)}")

    def __len__(self) -> int:
        return len(self.latents_NCTHW)

    @property
    def identity(self) -> str:
        return f"in memory {tuple(self.latents_NCTHW.shape)} {tuple(self.texts_MLD.shape)}"

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        channels, frames, height, width = self.latents_NCTHW.shape[1:]
        return channels, frames, height, width

    def batch(self, indices: Sequence[int]) -> Batch:
        check_indices(indices, num_samples=len(self))
        chosen_B = torch.as_tensor(indices, dtype=torch.long, device=self.latents_NCTHW.device)
        texts_B = self.text_of_N[chosen_B.to(self.text_of_N.device)].to(self.texts_MLD.device)
        return Batch(
            latent_BCTHW=self.latents_NCTHW[chosen_B], text_BLD=self.texts_MLD[texts_B], fps=self.fps
        )


def check_indices(indices: Sequence[int], *, num_samples: int) -> None:
    """IndexError for a number that no sample has: a GPU would only report it much later."""
    for index in indices:
        if not 0 <= index < num_samples:
            raise IndexError(f"sample {index} of {num_samples}: they count from 0")


def sample_index(num_samples: int, *, seed: int, position: int) -> int:
    """The sample that training sees at `position`, counted over all steps and ranks from 0.

    Every epoch shows each sample once, in an order drawn from (seed, epoch): the same for any number of ranks
    and any batch size, and after a restart.
    """
    epoch, entry = divmod(position, num_samples)
    return int(_permutation(num_samples, seed, epoch)[entry])


@lru_cache(maxsize=2)  # the two epochs that one batch can touch
def _permutation(num_samples: int, seed: int, epoch: int) -> numpy.ndarray:
    # numpy promises that RandomState's numbers never change; its newer generators may.
    return numpy.random.RandomState([seed, epoch]).permutation(num_samples)
