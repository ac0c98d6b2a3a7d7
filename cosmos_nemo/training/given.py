"""The frames that a network in training is told: which they are, and how it sees them.

B samples, C channels, T latent frames, H W rows and columns, K choices, N unit normal numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor

from cosmos_nemo.catalog import ModelCard, Task
from cosmos_nemo.sampling.rectified_flow import FlowDenoiser, flow_scaling
from cosmos_nemo.sampling.scaling import edm_scaling

LN_SIGMA_MEAN, LN_SIGMA_STD = -3.0, 2.0
"""Of the noise on given frames: most see little of it, a few as much as of a generated chunk's end."""


@dataclass(frozen=True)
class Given:
    """Which frames each sample of a micro-batch is told. The children say how it sees them."""

    is_given_BT: Tensor
    """bool."""

    @classmethod
    def numbers_needed(cls, shape_CTHW: Sequence[int]) -> int:
        """Unit normal numbers that `drawn` takes for a sample of this shape."""
        raise NotImplementedError(f"{cls.__name__}.numbers_needed")

    @classmethod
    def drawn(cls, unit_BN: Tensor, choices_KT: Tensor, shape_CTHW: Sequence[int]) -> Self:
        """From the numbers of each sample one of the choices, and all else that is left to chance."""
        raise NotImplementedError(f"{cls.__name__}.drawn")

    def mask_B1THW(self, x_BCTHW: Tensor) -> Tensor:
        """1 where x is given: the network's channel of its own for that."""
        b, _, t, h, w = x_BCTHW.shape
        return self.is_given_BT.to(x_BCTHW).view(b, 1, t, 1, 1).expand(b, 1, t, h, w)

    def mean_of_others(self, error_BCTHW: Tensor) -> Tensor:
        """The mean over the frames that are not given, [B]."""
        error_BT = error_BCTHW.mean(dim=(1, 3, 4))
        return torch.where(self.is_given_BT, 0, error_BT).sum(dim=1) / (~self.is_given_BT).sum(dim=1)

    def _replaced(self, x_BCTHW: Tensor, by_BCTHW: Tensor) -> Tensor:
        return torch.where(self.is_given_BT[:, None, :, None, None], by_BCTHW, x_BCTHW)


@dataclass(frozen=True)
class NoisedGiven(Given):
    """Frames that are seen under noise of their own (spec/predict1-diffusion.md, 5.2 and 5.3)."""

    sigma_B: Tensor
    noise_BCTHW: Tensor
    """Unit normal; read only where frames are given."""

    @classmethod
    def numbers_needed(cls, shape_CTHW: Sequence[int]) -> int:
        return 2 + prod(shape_CTHW)

    @classmethod
    def drawn(cls, unit_BN: Tensor, choices_KT: Tensor, shape_CTHW: Sequence[int]) -> Self:
        """The level, the choice, then the noise."""
        return cls(
            is_given_BT=_chosen(unit_BN[:, 1], choices_KT),
            sigma_B=(LN_SIGMA_MEAN + LN_SIGMA_STD * unit_BN[:, 0]).exp(),
            noise_BCTHW=unit_BN[:, 2:].reshape(-1, *shape_CTHW),
        )

    def put_into(self, x_BCTHW: Tensor, x0_BCTHW: Tensor, *, sigma_data: float) -> Tensor:
        """x, which is already times c_in, with the given frames of x0 under their own noise.

        Times c_in of that noise: as GivenDenoiser shows them, whatever the level of the sample itself.
        """
        sigma = self.sigma_B.to(x0_BCTHW)[:, None, None, None, None]
        c_in = edm_scaling(sigma, sigma_data=sigma_data).c_in
        return self._replaced(x_BCTHW, c_in * (x0_BCTHW + sigma * self.noise_BCTHW))


@dataclass(frozen=True)
class CleanGiven(Given):
    """Frames that are seen as they are (spec/predict2-video2world.md, 4.1)."""

    @classmethod
    def numbers_needed(cls, shape_CTHW: Sequence[int]) -> int:
        return 1

    @classmethod
    def drawn(cls, unit_BN: Tensor, choices_KT: Tensor, shape_CTHW: Sequence[int]) -> Self:
        return cls(_chosen(unit_BN[:, 0], choices_KT))

    def put_into(self, x_BCTHW: Tensor, x0_BCTHW: Tensor) -> Tensor:
        """x, which is already times c_in, with the given frames of x0: c_in is 1 where there is no noise."""
        return self._replaced(x_BCTHW, x0_BCTHW)

    def timesteps_BT(self, t_BT: Tensor) -> Tensor:
        """t, but where frames are given the little noise that FlowDenoiser, too, tells the network of."""
        of_given = flow_scaling(torch.tensor(FlowDenoiser.sigma_conditional)).c_noise
        return torch.where(self.is_given_BT, of_given.to(t_BT), t_BT)


def choices_of(card: ModelCard, num_latent_frames: int) -> Tensor | None:
    """bool [K, T], the ways in which frames of a sample may be given; None for a model that is told none.

    A Video2World goes on from as many frames as in inference, an interpolator fills in between the first and
    the last. No sample goes without: inference always has given frames, and Predict2's released training gave
    every clip its first latent frame or two.
    """
    if not card.network.takes_given_mask:
        return None
    if card.task is Task.WORLD_INTERPOLATOR:
        places = [[0, num_latent_frames - 1]]
    else:
        counts = sorted({card.latent_frames(num_frames) for num_frames in card.video.given_frames})
        places = [list(range(count)) for count in counts if count < num_latent_frames]
    is_given_KT = torch.zeros(len(places), num_latent_frames, dtype=torch.bool)
    for row, given in zip(is_given_KT, places, strict=True):
        row[given] = True
    assert places and not is_given_KT.all(dim=1).any(), (
        f"{num_latent_frames} latent frames leave none to make"
    )
    return is_given_KT


def _chosen(unit_B: Tensor, choices_KT: Tensor) -> Tensor:
    """Each choice has the same share."""
    share_B = torch.special.ndtr(unit_B)
    chosen_B = (share_B * len(choices_KT)).long().clamp(max=len(choices_KT) - 1)
    return choices_KT.to(unit_B.device)[chosen_B]
