"""Training of a small video tokenizer on clips of the nano world, and of more than the world holds.

The network is trained on Haar patches: diffusers' patchers are left out, and one orthogonal matrix does what
they do, much faster.

Letters: B clips, C channels, T H W frames, rows, columns (of the clip or of the patches), P the 64 pixels
of a patch or its 64 sub-bands.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.writer.video_tokenizer import (
    write_tokenizer_safetensors,
    write_tokenizer_statistics,
)
from cosmos_nemo.models.video_tokenizer.encoding import encode
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder
from cosmos_nemo.training.nano.tokenizer_clips import object_mask, training_clips, world_and_robots
from cosmos_nemo.training.nano.tokenizer_training import (
    OnStep,
    Training,
    fill,
    latent_noise,
    reconstruction_loss,
    run,
    with_noise,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos

_LEARNING_RATE = 0.0075
"""Of the convolutions' matrices."""
_OBJECT_WEIGHT = 8.0
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
) -> TrainedTokenizer:
    """A tokenizer trained from nothing; bfloat16 arithmetic on a GPU, float32 elsewhere.

    state_path: a file that is written every `save_every_s` seconds and at the end, and continued from if it
    is there; the result is that of an unbroken run. TokenizerStateError if it is damaged, or belongs to
    another training.
    """
    settings = {
        "shape": repr(shape),
        "seed": seed,
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    training = _training(
        shape,
        seed=seed,
        learning_rate=learning_rate,
        num_steps=num_steps,
        batch_size=batch_size,
        device=device,
    )
    run(training, settings=settings, state_path=state_path, save_every_s=save_every_s, on_step=on_step)
    return _finished(training.average, shape=shape, seed=seed, num_clips=statistics_clips, device=device)


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


class _Objective(nn.Module):
    """The loss of a network that maps patches to patches."""

    def __init__(self, network: "AutoencoderKLCosmos", basis_PP: Tensor) -> None:
        super().__init__()
        self.network: AutoencoderKLCosmos = network
        self.basis_PP = basis_PP

    def forward(self, blocks_BTHWCP: Tensor, weight_BTHWCP: Tensor, noise_BCTHW: Tensor) -> Tensor:
        """noise: in standard deviations of the latent's channels."""
        is_cuda = blocks_BTHWCP.is_cuda
        # A cast that is kept would be a tensor outside the CUDA graph.
        with torch.autocast(blocks_BTHWCP.device.type, torch.bfloat16, enabled=is_cuda, cache_enabled=False):
            latent = self.network.encode(_to_patches(blocks_BTHWCP, self.basis_PP)).latent_dist.mode()
            patches = self.network.decode(with_noise(latent, noise_BCTHW)).sample
        with torch.autocast(blocks_BTHWCP.device.type, enabled=False):
            blocks = _from_patches(patches.float(), self.basis_PP)
            return reconstruction_loss(blocks, blocks_BTHWCP, weight=weight_BTHWCP, latent=latent)


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
    network = build_autoencoder(shape, device=device, dtype=torch.float32)
    fill(network, _initial_weights(network, seed=seed))
    objective = _Objective(network, _haar_basis(network))
    # The basis does the patchers' work.
    network.encoder.patch_embed = nn.Identity()
    network.decoder.unpatch_embed = nn.Identity()
    return Training(
        network,
        objective,
        lambda step: _inputs(shape, batch_size, seed=(seed * 1_000_003 + step) * 4, device=device),
        learning_rate=learning_rate,
        num_steps=num_steps,
        uses_graphs=device.type == "cuda",
    )


def _inputs(
    shape: TokenizerShape, batch_size: int, *, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_Objective` takes."""
    video = training_clips(batch_size, seed=seed, device=device)
    frames = 1 + (video.shape[2] - 1) // shape.temporal_compression
    rows, columns = (size // shape.spatial_compression for size in video.shape[3:])
    sizes = (batch_size, shape.latent_channels, frames, rows, columns)
    noise = latent_noise(sizes, dice=torch.Generator(device).manual_seed(seed))
    return _blocks(video).contiguous(), _loss_weight(video), noise


def _initial_weights(network: nn.Module, *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Variance-keeping convolutions; what is added to a shortcut starts small, and so does the video."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith(".bias"):
            yield name, torch.zeros(parameter.shape)
        elif name.endswith("norm.weight"):
            yield name, torch.ones(parameter.shape)
        else:
            is_added = ".conv2.conv_t." in name or ".to_out." in name or "samplers.0.conv" in name
            is_small = (is_added and ".conv3." not in name) or name.startswith("decoder.conv_out.conv_t.")
            gain = 0.1 if is_small else 1.0
            scale = gain / math.sqrt(math.prod(parameter.shape[1:]))
            yield name, scale * torch.randn(parameter.shape, generator=dice)


@torch.no_grad()
def _haar_basis(autoencoder: "AutoencoderKLCosmos") -> Tensor:
    """Sub-bands of each pixel [pixel, sub-band], as diffusers' patcher orders them (spec 6.1).

    Its rows are orthogonal and of length 1/8: the inverse is 64 times the transpose.
    """
    size = autoencoder.config.patch_size
    impulses_PTHW = torch.eye(size**3).unflatten(1, (size, size, size))
    # The patcher repeats a clip's first frame: the pixels of interest follow it.
    clips = F.pad(impulses_PTHW, (0, 0, 0, 0, 1, 0)).unsqueeze(1)
    device = autoencoder.encoder.patch_embed.wavelets.device
    return autoencoder.encoder.patch_embed(clips.to(device))[:, :, 1, 0, 0]


def _blocks(video_BCTHW: Tensor) -> Tensor:
    """The pixels of each patch [B, T, H, W, C, P], the first frame of the clip four times."""
    padded = torch.cat((video_BCTHW[:, :, :1].expand(-1, -1, 3, -1, -1), video_BCTHW), dim=2)
    return rearrange(padded, "b c (t i) (h j) (w k) -> b t h w c (i j k)", i=4, j=4, k=4)


def _loss_weight(video_BCTHW: Tensor) -> Tensor:
    """Weights of the pixels as `_blocks` has them; none for the three copies of the first frame."""
    weight = _blocks(1 + _OBJECT_WEIGHT * object_mask(video_BCTHW))
    weight[:, 0, ..., :48] = 0
    return weight


def _to_patches(blocks_BTHWCP: Tensor, basis_PP: Tensor) -> Tensor:
    return rearrange(blocks_BTHWCP @ basis_PP, "b t h w c p -> b (p c) t h w")


def _from_patches(patches_BCTHW: Tensor, basis_PP: Tensor) -> Tensor:
    return rearrange(patches_BCTHW, "b (p c) t h w -> b t h w c p", c=3) @ (64 * basis_PP.T)


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
