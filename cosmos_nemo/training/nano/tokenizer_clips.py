"""What the nano world's video tokenizers learn from and are measured on: clips, and where their objects are.

Letters: B clips, C channels, T frames, H W rows and columns.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer
from cosmos_nemo.training.nano.world import (
    GROUNDS,
    MOTIONS,
    TRAINED,
    draw_clips,
    draw_subject_clips,
)

_OBJECT_DIFFERENCE = 0.1
_FRAMES_PER_PIECE = 2
_ROBOT_CLIPS = tuple(product(MOTIONS, GROUNDS))


class AnyTokenizer(Protocol):
    """A video tokenizer of any kind: video -1..1 [B, C, T, H, W] to latent, and back."""

    def encode(self, video_BCTHW: Tensor, /) -> Tensor:
        """The latent."""
        ...

    def decode(self, latent_BCTHW: Tensor, /) -> Tensor:
        """The video, not clamped."""
        ...


@dataclass(frozen=True)
class Psnr:
    """Peak signal-to-noise ratio in decibels over all pixels and over those of the objects and their rims."""

    frame: float
    object: float


@torch.no_grad()
def measure_psnr(tokenizer: AnyTokenizer, clips_BTHWC: Tensor) -> Psnr:
    """How well clips, uint8 0..255 on the tokenizer's device, come back after encoding and decoding."""
    sums = torch.zeros(4, dtype=torch.float64, device=clips_BTHWC.device)
    for clip_BTHWC in clips_BTHWC.split(4):
        video = to_video(clip_BTHWC)
        decoded = _decode(tokenizer, tokenizer.encode(video)).float().clamp(-1, 1)
        error = ((decoded - video) / 2).square().mean(1, keepdim=True)
        objects = object_mask(video)
        sums += torch.stack(
            (error.sum(), torch.ones_like(error).sum(), (error * objects).sum(), objects.sum())
        )
    frame, pixels, inside, object_pixels = sums.tolist()
    return Psnr(-10 * math.log10(frame / pixels), -10 * math.log10(inside / object_pixels))


def _decode(tokenizer: AnyTokenizer, latent_BCTHW: Tensor) -> Tensor:
    if isinstance(tokenizer, WanTokenizer):
        # One latent frame at a time, as it does unasked, takes a CPU several times as long.
        return tokenizer.decode(latent_BCTHW, frames_per_piece=_FRAMES_PER_PIECE)
    return tokenizer.decode(latent_BCTHW)


def to_video(clips_BTHWC: Tensor) -> Tensor:
    """Float -1..1 [B, C, T, H, W] of clips uint8 0..255."""
    return rearrange(clips_BTHWC, "b t h w c -> b c t h w").float() / 127.5 - 1


def object_mask(video_BCTHW: Tensor) -> Tensor:
    """1 where a clip differs from its commonest colour, and two pixels around; else 0 [B, 1, T, H, W]."""
    some = video_BCTHW[:, :, ::4, ::4, ::4].flatten(2)
    ground_BC111 = some.median(dim=2).values[:, :, None, None, None]
    differs = ((video_BCTHW - ground_BC111).abs().amax(1) > _OBJECT_DIFFERENCE).float()
    return F.max_pool2d(differs, kernel_size=5, stride=1, padding=2).unsqueeze(1)


def draw_varied_clips(count: int, *, seed: int, device: torch.device) -> Tensor:
    """Videos -1..1 [B, C, T, H, W] of what the world does not hold.

    Any colours, colours that change across the frame, objects of two tones, two objects, other directions.
    """
    dice = torch.Generator().manual_seed(seed)
    below = _varied_layer(count, dice=dice, device=device)
    above = _varied_layer(count, dice=dice, device=device)
    is_double = (torch.rand(count, generator=dice) < 0.5).to(device)[:, None, None, None, None]
    video = torch.where((object_mask(above) > 0) & is_double, above, below)
    ramp = torch.linspace(-1, 1, video.shape[-1], device=device)
    slope_2BC = (0.3 * torch.randn(2, count, 3, generator=dice)).to(device)[..., None, None, None]
    return (video + slope_2BC[0] * ramp + slope_2BC[1] * ramp[:, None]).clamp(-1, 1)


def _varied_layer(count: int, *, dice: torch.Generator, device: torch.device) -> Tensor:
    """Clips of the world and of the robot, their colours mixed at random, transposed or reversed."""
    video = world_and_robots(count - count // 2, count // 2, dice=dice, device=device)
    mix_BCC = (0.8 * torch.randn(count, 3, 3, generator=dice)).to(device)
    shift_BC111 = (0.4 * torch.randn(count, 3, generator=dice)).to(device)[..., None, None, None]
    video = (torch.einsum("bdc,bcthw->bdthw", mix_BCC, video) + shift_BC111).clamp(-1, 1)
    if torch.rand((), generator=dice) < 0.5:
        video = video.transpose(3, 4)
    return video.flip(2) if torch.rand((), generator=dice) < 0.5 else video


def world_and_robots(
    num_scenes: int, num_robots: int, *, dice: torch.Generator, device: torch.device
) -> Tensor:
    """Videos -1..1 of random trained scenes, one at least, then of the robot."""
    scenes = [TRAINED[i] for i in torch.randint(len(TRAINED), (num_scenes,), generator=dice).tolist()]
    robots = torch.randint(len(_ROBOT_CLIPS), (num_robots,), generator=dice).tolist()
    seed = int(torch.randint(2**31, (), generator=dice))
    clips = [draw_clips(scenes, seed=seed, device=device)]
    if robots:
        clips.append(draw_subject_clips([_ROBOT_CLIPS[i] for i in robots], seed=seed + 1, device=device))
    return to_video(torch.cat(clips))


def training_clips(count: int, *, seed: int, device: torch.device) -> Tensor:
    """Videos -1..1: half of them of the world, a quarter of the robot, a quarter of other things."""
    dice, quarter = torch.Generator().manual_seed(seed), count // 4
    video = world_and_robots(count - 2 * quarter, quarter, dice=dice, device=device)
    return torch.cat((video, draw_varied_clips(quarter, seed=seed + 1, device=device))) if quarter else video
