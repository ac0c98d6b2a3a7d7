"""Frames that are given: seen by the network at every step, slightly noised, and kept in the result.

B batch, C channels, T latent frames, H W latent rows and columns. spec/predict1-diffusion.md, 5.2 and 5.3.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cosmos_nemo.sampling.denoiser import Denoise
from cosmos_nemo.sampling.scaling import edm_scaling

_LN_SIGMA_MEAN, _LN_SIGMA_STD = -3.0, 2.0
"""Of the noise on given frames in training, and in the released interpolator."""


class Corruption(Protocol):
    """The noise under which the network sees given frames."""

    def draw(self) -> tuple[float, Tensor]:
        """Level and unit normal noise of the latent's shape, for one denoiser call."""
        ...

    def hides_at(self, sigma: float) -> bool:
        """Whether the given frames are left to the sample itself once its noise is down to `sigma`."""
        ...


@dataclass(frozen=True)
class FixedCorruption:
    """One level and one noise for all steps; a sample with less noise than that has no use for them."""

    noise: Tensor
    level: float = 0.001

    def draw(self) -> tuple[float, Tensor]:
        return self.level, self.noise

    def hides_at(self, sigma: float) -> bool:
        return self.level >= sigma


@dataclass(frozen=True)
class DrawnCorruption:
    """Another level, ln of it N(-3, 2), and other noise for every denoiser call, from one seed."""

    shape: torch.Size
    generator: torch.Generator

    def draw(self) -> tuple[float, Tensor]:
        normal = torch.randn((), generator=self.generator, dtype=torch.float64).item()
        return math.exp(_LN_SIGMA_MEAN + _LN_SIGMA_STD * normal), torch.randn(
            self.shape, generator=self.generator
        )

    def hides_at(self, sigma: float) -> bool:
        return False


@dataclass(frozen=True)
class GivenFrames:
    """What a sample is told: latent frames, and under which noise the network sees them."""

    latent_BCTHW: Tensor
    """In the units of the state, sigma_data times a normalised latent; read only where it is given."""
    is_given_T: Tensor
    """bool."""
    corruption: Corruption

    @property
    def mask_B1THW(self) -> Tensor:
        """1 where the latent is given: the network's channel of its own for that."""
        _, _, T, H, W = self.latent_BCTHW.shape
        return self.is_given_T.to(self.latent_BCTHW).view(1, 1, T, 1, 1).expand(1, 1, T, H, W)


@dataclass
class GivenDenoiser:
    """x0 from a denoiser that is shown the given frames; where they are, x0 is what was given."""

    denoise: Denoise
    frames: GivenFrames
    sigma_data: float
    _drawn: tuple[float, Tensor] | None = field(default=None, init=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self._drawn = self.frames.corruption.draw()
        clean = self.denoise(self.given(x, sigma), sigma)
        return torch.where(self._is_given(sigma), self.frames.latent_BCTHW.to(clean), clean)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x with the given frames as the latest call showed them: scaled so that c_in(sigma) undoes it."""
        level, noise = self._drawn or self.frames.corruption.draw()
        own = edm_scaling(torch.tensor(level, dtype=torch.float64), sigma_data=self.sigma_data).c_in
        its = edm_scaling(sigma.double(), sigma_data=self.sigma_data).c_in
        shown = (self.frames.latent_BCTHW + level * noise.to(self.frames.latent_BCTHW)) * float(own / its)
        return torch.where(self._is_given(sigma), shown.to(x), x)

    def _is_given(self, sigma: Tensor) -> Tensor:
        given_T = self.frames.is_given_T
        if self.frames.corruption.hides_at(float(sigma)):
            given_T = torch.zeros_like(given_T)
        return given_T.view(1, 1, -1, 1, 1)
