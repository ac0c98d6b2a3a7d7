"""The frames that a nano model is given, as its pipeline gives them, and deliberate mistakes in doing so.

Axes: B videos of a batch, T frames (latent ones where the name says latent), H rows, W columns, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_nemo.catalog import ModelCard, Task
from cosmos_nemo.job import Job
from cosmos_nemo.sampling.given import Corruption, FixedCorruption, GivenFrames
from cosmos_nemo.stages.denoise import Condition
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.visual_input import to_pixels

GIVEN_MISTAKES = ("mask_off", "given_shifted", "given_noise")
_HIDING = 1e3
"""Sigma of a noise under which nothing of a latent is left."""


@dataclass(frozen=True)
class Told:
    """The frames of a batch, and the mask that says so to the network."""

    frames: GivenFrames
    mask_B1THW: Tensor


@dataclass(frozen=True)
class _OnlyNoise:
    """Mistake: the network sees noise where it is told that frames are given."""

    noise: Tensor

    def draw(self) -> tuple[float, Tensor]:
        return _HIDING, self.noise

    def hides_at(self, sigma: float) -> bool:
        return False


def encoded_given(tokenizer: Tokenizer, given_BTHWC: Tensor, job: Job, *, mistake: str) -> Tensor:
    """Normalised latents [B, C, T, H, W] of uint8 frames, one after the other, as the pipelines make them."""
    height, width = job.request.height, job.request.width
    latents = []
    for given_THWC in given_BTHWC:
        pixels_BCTHW = to_pixels(given_THWC, height=height, width=width)
        if job.card.task is not Task.WORLD_INTERPOLATOR:
            latents.append(tokenizer.encode(pixels_BCTHW, as_image=False))
            continue
        first_BCTHW, last_BCTHW = pixels_BCTHW.split(1, dim=2)
        if mistake == "last_wrong":
            last_BCTHW = first_BCTHW
        parts = [
            tokenizer.encode(first_BCTHW, as_image=False),
            tokenizer.encode(last_BCTHW, as_image=True),
        ]
        latents.append(torch.cat(parts, dim=2))
    return torch.cat(latents)


def told(given_BCTHW: Tensor, noise_BCTHW: Tensor, card: ModelCard, *, mistake: str) -> Told:
    """The latents of `encoded_given` at their places in samples that start from this noise."""
    b, _, t, h, w = noise_BCTHW.shape
    places = [0, t - 1] if card.task is Task.WORLD_INTERPOLATOR else list(range(given_BCTHW.shape[2]))
    if mistake == "given_shifted":
        places = [(place + 1) % t for place in places]
    latent = torch.zeros_like(noise_BCTHW)
    latent[:, :, places] = card.sigma_data * given_BCTHW.to(noise_BCTHW)
    is_given_T = torch.zeros(t, dtype=torch.bool, device=noise_BCTHW.device)
    is_given_T[places] = True
    level = Condition(latent_BCTHW=given_BCTHW, places=tuple(places)).noise_level
    corruption: Corruption = FixedCorruption(noise_BCTHW, level)
    if mistake == "given_noise":
        corruption = _OnlyNoise(noise_BCTHW)
    frames = GivenFrames(latent, is_given_T, corruption)
    mask_B1THW = frames.mask_B1THW.expand(b, 1, t, h, w)
    return Told(frames, torch.zeros_like(mask_B1THW) if mistake == "mask_off" else mask_B1THW)


def decoded(tokenizer: Tokenizer, latent_BCTHW: Tensor, *, task: Task) -> Tensor:
    """Frames uint8 [T, H, W, C] of one video's latent; an interpolator's last one is an image's."""
    if task is not Task.WORLD_INTERPOLATOR:
        return tokenizer.decode(latent_BCTHW)
    parts = [tokenizer.decode(latent_BCTHW[:, :, :-1]), tokenizer.decode(latent_BCTHW[:, :, -1:])]
    return torch.cat(parts)
