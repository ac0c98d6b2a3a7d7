"""The frames that a network in training is told: which they are, and under which noise it sees them.

B samples, C channels, T latent frames, H W rows and columns, K choices. spec/predict1-diffusion.md, 5.2, 5.3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_nemo.catalog import ModelCard, Task
from cosmos_nemo.sampling.scaling import edm_scaling

LN_SIGMA_MEAN, LN_SIGMA_STD = -3.0, 2.0
"""Of the noise on given frames: most see little of it, a few as much as of a generated chunk's end."""
_MOST_GIVEN = 2
"""Latent frames that a Video2World may go on from: those of 9 video frames."""


@dataclass(frozen=True)
class Given:
    """What each sample of a micro-batch is told."""

    is_given_BT: Tensor
    """bool."""
    sigma_B: Tensor
    noise_BCTHW: Tensor
    """Unit normal; read only where frames are given."""

    @property
    def mask_B1THW(self) -> Tensor:
        """1 where the latent is given: the network's channel of its own for that."""
        b, _, t, h, w = self.noise_BCTHW.shape
        return self.is_given_BT.to(self.noise_BCTHW).view(b, 1, t, 1, 1).expand(b, 1, t, h, w)

    def put_into(self, x_BCTHW: Tensor, x0_BCTHW: Tensor, *, sigma_data: float) -> Tensor:
        """x, which is already times c_in, with the given frames of x0 under their own noise.

        Times c_in of that noise: as GivenDenoiser shows them, whatever the level of the sample itself.
        """
        sigma = self.sigma_B.to(x0_BCTHW)[:, None, None, None, None]
        shown = edm_scaling(sigma, sigma_data=sigma_data).c_in * (x0_BCTHW + sigma * self.noise_BCTHW)
        return torch.where(self.is_given_BT[:, None, :, None, None], shown, x_BCTHW)

    def mean_of_others(self, error_BCTHW: Tensor) -> Tensor:
        """The mean over the frames that are not given, [B]."""
        error_BT = error_BCTHW.mean(dim=(1, 3, 4))
        return torch.where(self.is_given_BT, 0, error_BT).sum(dim=1) / (~self.is_given_BT).sum(dim=1)


def choices_of(card: ModelCard, num_latent_frames: int) -> Tensor | None:
    """bool [K, T], the ways in which frames of a sample may be given; None for a model that is told none.

    A Video2World goes on from the first frame or two, an interpolator fills in between the first and the
    last.
    """
    if not card.network.takes_given_mask:
        return None
    if card.task is Task.WORLD_INTERPOLATOR:
        places = [[0, num_latent_frames - 1]]
    else:
        places = [list(range(count)) for count in range(1, min(_MOST_GIVEN, num_latent_frames - 1) + 1)]
    is_given_KT = torch.zeros(len(places), num_latent_frames, dtype=torch.bool)
    for row, given in zip(is_given_KT, places, strict=True):
        row[given] = True
    assert places and not is_given_KT.all(dim=1).any(), (
        f"{num_latent_frames} latent frames leave none to make"
    )
    return is_given_KT


def given_of(unit_BN: Tensor, choices_KT: Tensor, shape_CTHW: tuple[int, ...]) -> Given:
    """From unit normal numbers: of each row the level, the choice, then the noise of `shape_CTHW`."""
    share_B = torch.special.ndtr(unit_BN[:, 1])
    chosen_B = (share_B * len(choices_KT)).long().clamp(max=len(choices_KT) - 1)
    return Given(
        is_given_BT=choices_KT.to(unit_BN.device)[chosen_B],
        sigma_B=(LN_SIGMA_MEAN + LN_SIGMA_STD * unit_BN[:, 0]).exp(),
        noise_BCTHW=unit_BN[:, 2:].reshape(-1, *shape_CTHW),
    )
