"""What is learnt, one function for each family of networks, and the chance in it.

B samples, C channels, T latent frames, H W rows and columns, K choices of given frames.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from cosmos_nemo.catalog import Family, ModelCard
from cosmos_nemo.sampling.rectified_flow import flow_scaling
from cosmos_nemo.sampling.scaling import edm_scaling
from cosmos_nemo.training.given import CleanGiven, Given, NoisedGiven
from cosmos_nemo.training.noise_levels import NoiseLevels
from cosmos_nemo.training.settings import TrainingSettings

RawNetwork = Callable[[Tensor, Tensor], Tensor]
"""(scaled x [B, C, T, H, W], noise levels as its `modulate` takes them) -> F of x's shape."""


@dataclass(frozen=True)
class Draw:
    """The chance in one micro-batch."""

    sigma_B: Tensor
    noise_BCTHW: Tensor
    keeps_text_B: Tensor
    """False where the sample is trained without its text."""
    given: Given | None = None
    """None for a network that is told no frames."""


Loss = Callable[[RawNetwork, Tensor, Draw], Tensor]
"""(network, x0 [B, C, T, H, W], draw) -> the loss of each sample, [B] float32."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How the networks of a family are trained."""

    loss: Loss
    given: type[Given]
    """How a network that is told frames sees them."""
    log_sigma_mean: float
    """Of the noise levels, where the settings leave it to the model; likewise the next."""
    high_noise_share: float


def objective_of(card: ModelCard, *, num_latent_frames: int) -> Objective:
    """The one place where training asks which family a network is of.

    The noise levels of Predict2 are those of its released training: ln(sigma) from N(0, 1), then sigma times
    the root of the number of latent frames, since frames tell of each other what noise hides of one; and one
    sample in twenty with far more noise, without which the start of sampling, where it is decided what moves,
    would hardly be trained. Those of the others are NeMo's (spec/nemo-cosmos1.md, 5).
    """
    if card.network.family is Family.PREDICT2:
        return Objective(
            loss=flow_loss,
            given=CleanGiven,
            log_sigma_mean=math.log(num_latent_frames) / 2,
            high_noise_share=0.05,
        )
    loss = partial(edm_loss, sigma_data=card.sigma_data)
    return Objective(loss=loss, given=NoisedGiven, log_sigma_mean=0.0, high_noise_share=0.0)


def noise_levels(settings: TrainingSettings, objective: Objective) -> NoiseLevels:
    """Those of the settings, the objective's own where they name none."""
    mean, share = settings.log_sigma_mean, settings.high_noise_share
    return NoiseLevels(
        mean=objective.log_sigma_mean if mean is None else mean,
        std=settings.log_sigma_std,
        high_share=objective.high_noise_share if share is None else share,
    )


def draw(
    positions: Sequence[int],
    shape_CTHW: Sequence[int],
    *,
    seed: int,
    levels: NoiseLevels,
    text_dropout: float,
    device: torch.device,
    given: type[Given] = NoisedGiven,
    choices_KT: Tensor | None = None,
) -> Draw:
    """Each sample's own draw, a function of the seed and its position in the run alone.

    So the ranks, the size of a micro-batch and an interruption change nothing. Of one kind of device: CUDA
    and CPU have different generators. choices_KT: the ways to give frames, see given.choices_of.
    """
    generator = torch.Generator(device)
    own = 2 + prod(shape_CTHW)
    of_given = 0 if choices_KT is None else given.numbers_needed(shape_CTHW)
    unit = torch.empty(len(positions), own + of_given, device=device)
    for row, position in zip(unit, positions, strict=True):
        generator.manual_seed(_mixed(seed, position))
        row.normal_(generator=generator)
    return Draw(
        sigma_B=levels.sigma_of(unit[:, 0]),
        noise_BCTHW=unit[:, 2:own].reshape(-1, *shape_CTHW),
        keeps_text_B=torch.special.ndtr(unit[:, 1]) >= text_dropout,
        given=None if choices_KT is None else given.drawn(unit[:, own:], choices_KT, shape_CTHW),
    )


def edm_loss(network: RawNetwork, x0_BCTHW: Tensor, draw: Draw, *, sigma_data: float) -> Tensor:
    """Tells the clean latent from a noisy one (spec/nemo-cosmos1.md 5, arXiv 2206.00364).

    The loss of each sample, [B] float32: w(sigma) (x0 - x0_hat)^2 averaged over the frames not given. x0 is
    the normalised latent times sigma_data. w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 makes the loss
    that of the raw output F, of order 1 at every noise level.
    """
    sigma = draw.sigma_B.float()[:, None, None, None, None]
    scaling = edm_scaling(sigma, sigma_data=sigma_data)
    x = x0_BCTHW + sigma * draw.noise_BCTHW
    seen = scaling.c_in * x
    if draw.given is not None:
        assert isinstance(draw.given, NoisedGiven), type(draw.given)
        seen = draw.given.put_into(seen, x0_BCTHW, sigma_data=sigma_data)
    output = network(seen, scaling.c_noise.flatten())
    x0_hat = scaling.c_skip * x + scaling.c_out * output.float()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return _mean(weight * (x0_BCTHW - x0_hat) ** 2, draw.given)


def flow_loss(network: RawNetwork, x0_BCTHW: Tensor, draw: Draw) -> Tensor:
    """Tells the direction from data to noise (spec/predict2-video2world.md 4, arXiv 2209.03003).

    The loss of each sample, [B] float32: (F - (noise - x0))^2 averaged over the frames not given, of order 1
    at every noise level. x0 is the normalised latent. The network sees (1 - t) x0 + t noise with t = sigma /
    (1 + sigma), the input of FlowDenoiser: since logit(t) = ln(sigma), a normal ln(sigma) is a logit-normal t
    (arXiv 2403.03206). In terms of the estimate this is ((1 + sigma) / sigma)^2 (x0 - x0_hat)^2; the released
    training weighs with (1 + sigma^2) / sigma^2, half of that at sigma 1 and the same at both ends.
    """
    t_B = flow_scaling(draw.sigma_B.float()).c_noise
    t = t_B[:, None, None, None, None]
    seen = (1 - t) * x0_BCTHW + t * draw.noise_BCTHW
    timesteps_BT = t_B[:, None].expand(-1, x0_BCTHW.shape[2])
    if draw.given is not None:
        assert isinstance(draw.given, CleanGiven), type(draw.given)
        seen = draw.given.put_into(seen, x0_BCTHW)
        timesteps_BT = draw.given.timesteps_BT(timesteps_BT)
    output = network(seen, timesteps_BT)
    return _mean((output.float() - (draw.noise_BCTHW - x0_BCTHW)) ** 2, draw.given)


def _mean(error_BCTHW: Tensor, given: Given | None) -> Tensor:
    """[B], over what the network has to make."""
    return error_BCTHW.mean(dim=(1, 2, 3, 4)) if given is None else given.mean_of_others(error_BCTHW)


def _mixed(seed: int, position: int) -> int:
    """One 63-bit seed of both, by the finaliser of splitmix64: neighbours share no bits."""
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1
