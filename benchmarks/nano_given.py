"""The frames that a nano model is given, as its pipeline gives them, and deliberate mistakes in doing so.

Axes: B videos of a batch, T frames (latent ones where the name says latent), H rows, W columns, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_nemo.catalog import Family, ModelCard, Task
from cosmos_nemo.job import Job
from cosmos_nemo.sampling.denoiser import Denoise, EdmDenoiser
from cosmos_nemo.sampling.given import Corruption, FixedCorruption, GivenDenoiser, GivenFrames
from cosmos_nemo.sampling.rectified_flow import CleanFrames, FlowDenoiser
from cosmos_nemo.stages.denoise import Condition
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer
from cosmos_nemo.stages.visual_input import cropped, to_pixels, unit_pixels

GIVEN_MISTAKES = ("mask_off", "given_shifted", "given_noise")
_HIDING = 1e3
"""Sigma of a noise under which nothing of a latent is left."""


@dataclass(frozen=True)
class Told:
    """The frames of a batch, and the mask that says so to the network."""

    frames: GivenFrames | CleanFrames
    mask_B1THW: Tensor
    kept: CleanFrames | None = None
    """Those that the video shows, if the network sees others; of Predict2 alone."""


@dataclass(frozen=True)
class _Kept:
    """x0 with other given frames than the network is shown."""

    denoise: FlowDenoiser
    frames: CleanFrames

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.frames.put_into(self.denoise(x, sigma))

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.denoise.given(x, sigma)


@dataclass(frozen=True)
class _OnlyNoise:
    """Mistake: the network sees noise where it is told that frames are given."""

    noise: Tensor

    def draw(self) -> tuple[float, Tensor]:
        return _HIDING, self.noise

    def hides_at(self, sigma: float) -> bool:
        return False


def encoded_given(tokenizer: AnyTokenizer, given_BTHWC: Tensor, job: Job, *, mistake: str) -> Tensor:
    """Normalised latents [B, C, T, H, W] of uint8 frames, one after the other, as the pipelines make them."""
    height, width = job.request.height, job.request.width
    latents = []
    for given_THWC in given_BTHWC:
        if job.card.network.family is Family.PREDICT2:
            pixels_BCTHW = unit_pixels(cropped(given_THWC, height=height, width=width))
        else:
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
    if card.network.family is Family.PREDICT2:
        return _told_clean(CleanFrames(latent, is_given_T), noise_BCTHW, mistake=mistake)
    level = Condition(latent_BCTHW=given_BCTHW, places=tuple(places)).noise_level
    corruption: Corruption = FixedCorruption(noise_BCTHW, level)
    if mistake == "given_noise":
        corruption = _OnlyNoise(noise_BCTHW)
    frames = GivenFrames(latent, is_given_T, corruption)
    return Told(frames, _mask(frames.mask_B1THW.expand(b, 1, t, h, w), mistake=mistake))


def _told_clean(frames: CleanFrames, noise_BCTHW: Tensor, *, mistake: str) -> Told:
    mask_B1THW = _mask(frames.mask_B1THW, mistake=mistake)
    if mistake != "given_noise":
        return Told(frames, mask_B1THW)
    return Told(CleanFrames(noise_BCTHW, frames.is_given_T), mask_B1THW, kept=frames)


def _mask(mask_B1THW: Tensor, *, mistake: str) -> Tensor:
    return torch.zeros_like(mask_B1THW) if mistake == "mask_off" else mask_B1THW


def denoiser_of(network: Callable[[Tensor, Tensor], Tensor], told: Told | None, card: ModelCard) -> Denoise:
    """As stages/denoise.py has it, of a network that takes a batch: (scaled x, levels) -> guided F."""
    if card.network.family is Family.PREDICT2:
        assert told is None or isinstance(told.frames, CleanFrames)
        flow = FlowDenoiser(network, None if told is None else told.frames)
        return flow if told is None or told.kept is None else _Kept(flow, told.kept)
    denoiser = EdmDenoiser(network, card.sigma_data)
    if told is None:
        return denoiser
    assert isinstance(told.frames, GivenFrames)
    return GivenDenoiser(denoiser, told.frames, card.sigma_data)


def decoded(tokenizer: AnyTokenizer, latent_BCTHW: Tensor, *, task: Task) -> Tensor:
    """Frames uint8 [T, H, W, C] of one video's latent; an interpolator's last one is an image's."""
    if task is not Task.WORLD_INTERPOLATOR:
        return tokenizer.decode(latent_BCTHW)
    parts = [tokenizer.decode(latent_BCTHW[:, :, :-1]), tokenizer.decode(latent_BCTHW[:, :, -1:])]
    return torch.cat(parts)
