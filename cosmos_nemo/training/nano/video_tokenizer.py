"""Training of a small video tokenizer on clips of the nano world, and of more than the world holds.

Letters: B clips, C channels, T H W frames, rows, columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.writer.video_tokenizer import (
    write_tokenizer_safetensors,
    write_tokenizer_statistics,
)
from cosmos_nemo.models.video_tokenizer.encoding import encode
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder
from cosmos_nemo.training.nano.patches import blocks_and_weight, patch_training
from cosmos_nemo.training.nano.tokenizer_clips import training_clips, world_and_robots
from cosmos_nemo.training.nano.tokenizer_training import (
    OnStep,
    Training,
    fill,
    latent_noise,
    trained_average,
    with_noise,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos

_LEARNING_RATE = 0.0075
"""Of the convolutions' matrices."""
_STATISTICS_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class TrainedTokenizer:
    """Weights under diffusers' names and the latents' statistics, float32 on the CPU."""

    shape: TokenizerShape
    weights: dict[str, Tensor]
    mean_CT: Tensor
    std_CT: Tensor
    image_mean_C: Tensor
    image_std_C: Tensor

    def build(self, *, device: torch.device, dtype: torch.dtype = torch.float32) -> VideoTokenizer:
        """The tokenizer, ready to encode and decode."""
        autoencoder = build_autoencoder(self.shape, device=device, dtype=dtype)
        fill(autoencoder, self.weights)
        tokenizer = VideoTokenizer(
            autoencoder,
            mean_CT=self.mean_CT,
            std_CT=self.std_CT,
            image_mean_C=self.image_mean_C,
            image_std_C=self.image_std_C,
        )
        return tokenizer.to(device)


def train_video_tokenizer(
    shape: TokenizerShape,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    device: torch.device,
    learning_rate: float = _LEARNING_RATE,
    statistics_clips: int = 1024,
    state_path: Path | None = None,
    save_every_s: float = 60.0,
    on_step: OnStep = lambda step, loss: None,
    wants_to_stop: Callable[[], bool] = lambda: False,
) -> TrainedTokenizer:
    """A tokenizer trained from nothing; bfloat16 arithmetic on a GPU, float32 elsewhere.

    state_path: a file that is written every `save_every_s` seconds and at the end, and continued from if it
    is there; the result is that of an unbroken run. TokenizerStateError if it is damaged, or belongs to
    another training. TrainingStopped if `wants_to_stop` says so before the end.
    """
    average = trained_average(
        _training,
        shape,
        seed=seed,
        num_steps=num_steps,
        batch_size=batch_size,
        device=device,
        learning_rate=learning_rate,
        state_path=state_path,
        save_every_s=save_every_s,
        on_step=on_step,
        wants_to_stop=wants_to_stop,
    )
    return _finished(average, shape=shape, seed=seed, num_clips=statistics_clips, device=device)


def write_video_tokenizer(
    folder: Path, trained: TrainedTokenizer, *, dtype: torch.dtype = torch.float16
) -> None:
    """Writes tokenizer.safetensors, weights in `dtype`, mean_std.pt and image_mean_std.pt.

    The folder is made if need be; stages.tokenizer reads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: values.to(dtype) for name, values in trained.weights.items()}
    write_tokenizer_safetensors(folder, trained.shape, weights)
    write_tokenizer_statistics(
        folder,
        video=(trained.mean_CT, trained.std_CT),
        image=(trained.image_mean_C, trained.image_std_C),
    )


def _training(
    shape: TokenizerShape,
    *,
    seed: int,
    learning_rate: float,
    num_steps: int,
    batch_size: int,
    device: torch.device,
) -> Training:
    """The training at its beginning. Clips and noise depend on seed and step alone."""
    return patch_training(
        build_autoencoder(shape, device=device, dtype=torch.float32),
        with_noise,
        lambda step: _inputs(shape, batch_size, seed=(seed * 1_000_003 + step) * 4, device=device),
        seed=seed,
        learning_rate=learning_rate,
        num_steps=num_steps,
    )


def _inputs(
    shape: TokenizerShape, batch_size: int, *, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What PatchObjective takes, and the noise."""
    video = training_clips(batch_size, seed=seed, device=device)
    frames = 1 + (video.shape[2] - 1) // shape.temporal_compression
    rows, columns = (size // shape.spatial_compression for size in video.shape[3:])
    sizes = (batch_size, shape.latent_channels, frames, rows, columns)
    noise = latent_noise(sizes, dice=torch.Generator(device).manual_seed(seed))
    return *blocks_and_weight(video), noise


def _finished(
    average: Mapping[str, Tensor],
    *,
    shape: TokenizerShape,
    seed: int,
    num_clips: int,
    device: torch.device,
) -> TrainedTokenizer:
    """The averaged weights, with statistics over `num_clips` clips of trained scenes."""
    network = build_autoencoder(shape, device=device, dtype=torch.float32)
    fill(network, average)
    mean_CT, std_CT = _latent_statistics(network, seed=seed, num_clips=num_clips, device=device)
    # Longer clips than those here take the last frame's; an image's latent is that of a clip's first frame.
    frames = torch.arange(shape.statistics_frames).clamp(max=mean_CT.shape[1] - 1)
    return TrainedTokenizer(
        shape=shape,
        weights={name: values.cpu() for name, values in average.items()},
        mean_CT=mean_CT[:, frames],
        std_CT=std_CT[:, frames],
        image_mean_C=mean_CT[:, 0],
        image_std_C=std_CT[:, 0],
    )


def _latent_statistics(
    network: "AutoencoderKLCosmos", *, seed: int, num_clips: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C, T] over clips, rows and columns, float32 on the CPU."""
    dice = torch.Generator().manual_seed(seed)
    sums: list[tuple[Tensor, Tensor]] = []
    for begin in range(0, num_clips, _STATISTICS_BATCH):
        count = min(_STATISTICS_BATCH, num_clips - begin)
        latent = encode(network, world_and_robots(count, 0, dice=dice, device=device)).double()
        sums.append((latent.mean((3, 4)).sum(0).cpu(), latent.square().mean((3, 4)).sum(0).cpu()))
    mean_CT, square_CT = (sum(parts, torch.zeros(())) / num_clips for parts in zip(*sums, strict=True))
    std_CT = (square_CT - mean_CT.square()).clamp_min(1e-8).sqrt()
    return mean_CT.float(), std_CT.float()
