"""Wan2.1's video tokenizer as a stage: latents to frames and back."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.rules import Rule, Same
from cosmos_nemo.checkpoint.wan_tokenizer_names import match_names, tensor_shapes
from cosmos_nemo.models.wan_tokenizer.model import PARTS, WanTokenizer, build_autoencoder
from cosmos_nemo.stages.continuous_tokenizer import ContinuousTokenizer

# NVIDIA's name of the released file, Wan2.1's own, and diffusers' `vae` folder.
_RELEASED, _DIFFUSERS = ("tokenizer.pth", "Wan2.1_VAE.pth"), "diffusion_pytorch_model.safetensors"
_CONFIG = "config.json"

# Latent frames. With two, each convolution joins fewer frames of the piece before to its own; a few percent.
_ON_CPU = 2

# Of the released tokenizer, whose file does not hold them (spec/predict2-video2world.md, 3).
PUBLISHED_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
PUBLISHED_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class WanTokenizerStage(ContinuousTokenizer):
    """A video tokenizer of Wan2.1's kind."""

    shape: WanTokenizerShape

    def check(self) -> None:
        """CheckpointError unless the folder holds the parts and the statistics of such a tokenizer."""
        open_weights(self.folder, self.shape, parts=self.parts)
        read_statistics(self.folder, self.shape)

    def build(self) -> WanTokenizer:
        statistics = read_statistics(self.folder, self.shape)
        checkpoint, rules = open_weights(self.folder, self.shape, parts=self.parts)
        autoencoder = build_autoencoder(self.shape, device=self.device, dtype=self.dtype, parts=self.parts)
        load_into(autoencoder, checkpoint=checkpoint, rules=rules)
        return WanTokenizer(autoencoder, **statistics).to(self.device)

    def encode(self, video_BCTHW: Tensor, *, as_image: bool | None = None) -> Tensor:
        """The normalised latent, float32 on the device, of a video -1..1; see WanTokenizer.encode.

        as_image: taken for the sake of other tokenizers and without effect, since this one has the same
        statistics for an image and for every frame of a video.
        """
        return self._tokenizer.encode(video_BCTHW.to(self.device))

    def pieces(self, latent_BCTHW: Tensor) -> Iterator[Tensor]:
        frames = _ON_CPU if self.device.type == "cpu" else 1
        return self._tokenizer.decode_pieces(latent_BCTHW, frames_per_piece=frames)

    def share(self, latent_BCTHW: Tensor, group: ProcessGroup) -> Tensor | None:
        return self._tokenizer.decode_share(latent_BCTHW, group=group)

    @property
    def _tokenizer(self) -> WanTokenizer:
        assert isinstance(self.module, WanTokenizer), "enter the stage first"
        return self.module


def open_weights(
    folder: Path, shape: WanTokenizerShape, *, parts: Collection[str] = PARTS
) -> tuple[Checkpoint, dict[str, Rule]]:
    """The file that holds the tokenizer, and how the tensors of `parts` are read from it.

    CheckpointError if there is none, or if its tensors are not those of `shape`.
    """
    checkpoint = open_checkpoint(_weights_path(folder))
    stored = {name: checkpoint.shape(name) for name in checkpoint.names()}
    sources, wrong = match_names(shape, stored, parts=parts)
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path}: {wrong}. "
            f"Is it complete, and a Wan2.1 video tokenizer of {shape.channels} channels?"
        )
    shapes = tensor_shapes(shape, parts=parts)
    return checkpoint, {name: Same(names=(source,), shape=shapes[name]) for name, source in sources.items()}


def read_statistics(folder: Path, shape: WanTokenizerShape) -> dict[str, Tensor]:
    """Mean and standard deviation of each latent channel by the names of WanTokenizer's arguments.

    From config.json, as diffusers keeps them; beside a released file without such statistics, the published
    ones. CheckpointError if there are none, or if they make no sense.
    """
    path = folder / _CONFIG
    is_diffusers = _weights_path(folder).name == _DIFFUSERS
    # Wan2.1's own repository has a config.json beside the tokenizer too: the diffusion transformer's.
    config = read_json(path, lacking="has no latent statistics") if is_diffusers or path.is_file() else {}
    if is_diffusers or "latents_mean" in config:
        return _statistics(config, path=path, count=shape.latent_channels)
    if shape.latent_channels != len(PUBLISHED_MEAN):
        raise CheckpointError(
            f"{folder} has no statistics for {shape.latent_channels} latent channels, and those of Wan2.1 "
            f"are for {len(PUBLISHED_MEAN)}: put latents_mean and latents_std into a {_CONFIG} beside "
            "the weights"
        )
    return {"mean_C": torch.tensor(PUBLISHED_MEAN), "std_C": torch.tensor(PUBLISHED_STD)}


def _weights_path(folder: Path) -> Path:
    names = (*_RELEASED, _DIFFUSERS)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: pass the folder that holds it as --tokenizer_dir")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} holds no video tokenizer: one of {', '.join(names)} is needed")
    return found


def _statistics(config: dict[str, Any], *, path: Path, count: int) -> dict[str, Tensor]:
    try:
        mean_C, std_C = (
            torch.tensor(config[name], dtype=torch.float32) for name in ("latents_mean", "latents_std")
        )
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} has no lists latents_mean and latents_std of numbers") from error
    if mean_C.shape != (count,) or std_C.shape != (count,):
        raise CheckpointError(
            f"{path} holds {mean_C.numel()} means and {std_C.numel()} standard deviations, but this "
            f"tokenizer has {count} latent channels: it belongs to another"
        )
    if not (mean_C.isfinite().all() and std_C.isfinite().all() and (std_C > 0).all()):
        raise CheckpointError(f"{path} holds NaN, infinite or non-positive statistics: download it again")
    return {"mean_C": mean_C, "std_C": std_C}
