"""What lies in a video tokenizer's folder, in any layout it is released in."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.rules import Rule, Same
from cosmos_nemo.checkpoint.tokenizer_names import match_names, tensor_shapes

# NVIDIA's archives of one part or of both, the same tensors as safetensors, and diffusers' `vae` folder.
_WEIGHTS = ("{part}.jit", "autoencoder.jit", "tokenizer.safetensors", "diffusion_pytorch_model.safetensors")
_VIDEO_STATISTICS, _IMAGE_STATISTICS, _DIFFUSERS_CONFIG = "mean_std.pt", "image_mean_std.pt", "config.json"


def open_part(folder: Path, shape: TokenizerShape, *, part: str) -> tuple[Checkpoint, dict[str, Rule]]:
    """The file that holds `part` ("encoder" or "decoder"), and how the part's tensors are read from it.

    CheckpointError if there is none, or if its tensors are not those of `shape`.
    """
    checkpoint = open_checkpoint(_weights_path(folder, part))
    match = match_names(shape, checkpoint.names(), parts=(part,))
    shapes = tensor_shapes(shape, parts=(part,))
    complaint = match.complaint() or _other_shape(checkpoint, match.sources, shapes)
    if complaint:
        raise CheckpointError(
            f"{checkpoint.path}: {complaint}. Is it complete, and a tokenizer of {shape.channels} channels?"
        )
    return checkpoint, {
        name: Same(names=(source,), shape=shapes[name]) for name, source in match.sources.items()
    }


def read_statistics(folder: Path, shape: TokenizerShape) -> dict[str, Tensor]:
    """The means and standard deviations by the names of VideoTokenizer's arguments; the image's if there.

    CheckpointError if the video's are missing, or if any are damaged or of another size.
    """
    channels, frames = shape.latent_channels, shape.statistics_frames
    mean, std = _video_statistics(folder, count=channels * frames)
    tables = {"mean_CT": mean.view(channels, -1), "std_CT": std.view(channels, -1)}
    if (folder / _IMAGE_STATISTICS).is_file():
        image_mean, image_std = _load_pair(folder / _IMAGE_STATISTICS, count=channels)
        tables |= {"image_mean_C": image_mean, "image_std_C": image_std}
    return tables


def _weights_path(folder: Path, part: str) -> Path:
    names = [name.format(part=part) for name in _WEIGHTS]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} holds no video {part}: one of {', '.join(names)} is needed")
    return found


def _other_shape(checkpoint: Checkpoint, sources: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> str:
    other = [name for name, source in sources.items() if checkpoint.shape(source) != shapes[name]]
    if not other:
        return ""
    source, shape = sources[other[0]], shapes[other[0]]
    first = f"{source} is {checkpoint.shape(source)}, not {shape}"
    return f"{len(other)} of {len(sources)} tensors of another shape, first: {first}"


def _video_statistics(folder: Path, *, count: int) -> tuple[Tensor, Tensor]:
    if (folder / _VIDEO_STATISTICS).is_file() or not (folder / _DIFFUSERS_CONFIG).is_file():
        return _load_pair(folder / _VIDEO_STATISTICS, count=count)
    path = folder / _DIFFUSERS_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        pair = torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} has no latents_mean and latents_std: put {_VIDEO_STATISTICS} of the tokenizer beside it"
        ) from error
    return _checked(pair, path=path, count=count)


def _load_pair(path: Path, *, count: int) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the tokenizer's latents cannot be normalised without it")
    try:
        pair = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or damaged ({reason}): copy or download it again"
        ) from error
    return _checked(pair, path=path, count=count)


def _checked(pair: Any, *, path: Path, count: int) -> tuple[Tensor, Tensor]:
    if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair)):
        raise CheckpointError(f"{path} holds no pair of tensors (mean, standard deviation)")
    mean, std = (values.float().flatten() for values in pair)
    if mean.numel() != count or std.numel() != count:
        raise CheckpointError(
            f"{path} holds {mean.numel()} means and {std.numel()} standard deviations, but this tokenizer "
            f"has {count}: it belongs to another"
        )
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise CheckpointError(f"{path} holds NaN, infinite or non-positive statistics: download it again")
    return mean, std
