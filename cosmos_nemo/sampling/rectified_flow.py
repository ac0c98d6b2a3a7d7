"""Rectified flow in the variables of EDM, and frames that are given clean: the denoiser of Cosmos-Predict2.

A sampler moves x = x0 + sigma noise. The network sees (1 - t) x = (1 - t) x0 + t noise, where t is
sigma / (1 + sigma): a straight line from data to noise. It predicts the line's direction, noise - x0.
spec/predict2-video2world.md, 4.
B batch, C channels, T latent frames, H W latent rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_nemo.sampling.scaling import EdmScaling


def flow_scaling(sigma: Tensor) -> EdmScaling:
    """Coefficients for sigma >= 0 (any shape), for latents of unit variance; c_noise is t, 0 to 1."""
    t = sigma / (1 + sigma)
    return EdmScaling(c_skip=1 - t, c_out=-t, c_in=1 - t, c_noise=t)


@dataclass(frozen=True)
class CleanFrames:
    """What a sample is told: latent frames that the network sees without noise. Both on one device."""

    latent_BCTHW: Tensor
    """Normalised, of the shape of the sample or with a B of 1; read only where it is given."""
    is_given_T: Tensor
    """bool."""

    def __post_init__(self) -> None:
        assert self.latent_BCTHW.ndim == 5, self.latent_BCTHW.shape
        assert self.is_given_T.dtype == torch.bool, self.is_given_T.dtype
        assert self.is_given_T.shape == self.latent_BCTHW.shape[2:3], self.is_given_T.shape

    @property
    def mask_B1THW(self) -> Tensor:
        """1 where the latent is given: the network's channel of its own for that."""
        B, _, T, H, W = self.latent_BCTHW.shape
        return self.is_given_T.to(self.latent_BCTHW).view(1, 1, T, 1, 1).expand(B, 1, T, H, W)

    def put_into(self, x_BCTHW: Tensor) -> Tensor:
        """x with the given frames in their places, in its dtype."""
        # A frame count of 1 would be repeated over all of x without a word.
        assert self.latent_BCTHW.shape[1:] == x_BCTHW.shape[1:], (self.latent_BCTHW.shape, x_BCTHW.shape)
        return torch.where(self.is_given_T.view(1, 1, -1, 1, 1), self.latent_BCTHW.to(x_BCTHW), x_BCTHW)


@dataclass(frozen=True)
class FlowDenoiser:
    """x0 from a raw network in rectified-flow scaling; where frames are given, x0 is what was given.

    network(input_BCTHW, timesteps_T) -> F: the input is at least float32 and scaled, its given frames are
    not; timesteps are float32 on x's device, one per latent frame; F of x's shape in any dtype. x0 has the
    dtype of x, but at least float32. spec/predict2-video2world.md, 4.1.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    frames: CleanFrames | None = None
    sigma_conditional: float = 1e-4
    """The noise level that the network is told of given frames, which it sees without any."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.ndim == 0, sigma.shape
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        scaling = flow_scaling(sigma.to(x))
        # The latent goes in as it is: given frames are at t = 0, where c_in is 1.
        output = self.network(self._with_given(scaling.c_in * x), self._timesteps_T(scaling.c_noise, x))
        return self._with_given(scaling.c_skip * x + scaling.c_out * output.to(x.dtype))

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x with the given frames clean in it, whatever sigma; x itself if there are none."""
        return self._with_given(x)

    def _with_given(self, x: Tensor) -> Tensor:
        return x if self.frames is None else self.frames.put_into(x)

    def _timesteps_T(self, t: Tensor, x: Tensor) -> Tensor:
        timesteps_T = t.float().expand(x.shape[2])
        if self.frames is None:
            return timesteps_T
        of_given = self.sigma_conditional / (1 + self.sigma_conditional)
        return timesteps_T.masked_fill(self.frames.is_given_T, of_given)
