"""What is learnt: to tell the clean latent from a noisy one (spec/nemo-cosmos1.md 5, arXiv 2206.00364).

B samples, C channels, T latent frames, H W rows and columns, K choices of given frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from cosmos_nemo.sampling.scaling import edm_scaling
from cosmos_nemo.training.given import Given, given_of

RawNetwork = Callable[[Tensor, Tensor], Tensor]
"""(c_in x [B, C, T, H, W], c_noise [B]) -> F of x's shape, as sampling/denoiser.py has it."""


@dataclass(frozen=True)
class Draw:
    """The chance in one micro-batch."""

    sigma_B: Tensor
    noise_BCTHW: Tensor
    keeps_text_B: Tensor
    """False where the sample is trained without its text."""
    given: Given | None = None
    """None for a network that is told no frames."""


def draw(
    positions: Sequence[int],
    shape_CTHW: Sequence[int],
    *,
    seed: int,
    log_sigma_mean: float,
    log_sigma_std: float,
    text_dropout: float,
    device: torch.device,
    choices_KT: Tensor | None = None,
) -> Draw:
    """Each sample's own draw, a function of the seed and its position in the run alone.

    So the ranks, the size of a micro-batch and an interruption change nothing. Of one kind of device: CUDA
    and CPU have different generators. choices_KT: the ways to give frames, see given.choices_of.
    """
    generator = torch.Generator(device)
    own = 2 + prod(shape_CTHW)
    unit = torch.empty(len(positions), own if choices_KT is None else 2 * own, device=device)
    for row, position in zip(unit, positions, strict=True):
        generator.manual_seed(_mixed(seed, position))
        row.normal_(generator=generator)
    sigma_B = (log_sigma_mean + log_sigma_std * unit[:, 0]).exp()
    keeps_text_B = torch.special.ndtr(unit[:, 1]) >= text_dropout
    given = None if choices_KT is None else given_of(unit[:, own:], choices_KT, tuple(shape_CTHW))
    return Draw(sigma_B, unit[:, 2:own].reshape(-1, *shape_CTHW), keeps_text_B, given)


def edm_loss(network: RawNetwork, x0_BCTHW: Tensor, draw: Draw, *, sigma_data: float) -> Tensor:
    """The loss of each sample, [B] float32: w(sigma) (x0 - x0_hat)^2 averaged over the frames not given.

    x0 is the normalised latent times sigma_data. w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 makes
    the loss that of the raw output F, of order 1 at every noise level.
    """
    sigma = draw.sigma_B.float()[:, None, None, None, None]
    scaling = edm_scaling(sigma, sigma_data=sigma_data)
    x = x0_BCTHW + sigma * draw.noise_BCTHW
    seen = scaling.c_in * x
    if draw.given is not None:
        seen = draw.given.put_into(seen, x0_BCTHW, sigma_data=sigma_data)
    output = network(seen, scaling.c_noise.flatten())
    x0_hat = scaling.c_skip * x + scaling.c_out * output.float()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = weight * (x0_BCTHW - x0_hat) ** 2
    return error.mean(dim=(1, 2, 3, 4)) if draw.given is None else draw.given.mean_of_others(error)


def _mixed(seed: int, position: int) -> int:
    """One 63-bit seed of both, by the finaliser of splitmix64: neighbours share no bits."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1
