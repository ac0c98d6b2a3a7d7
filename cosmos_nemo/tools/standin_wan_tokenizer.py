"""Random Wan2.1 video tokenizers in the layout of the released one, to try everything without the weights."""

import json
import math
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.wan_tokenizer_names import PARTS, released_names, tensor_shapes
from cosmos_nemo.stages.wan_tokenizer import PUBLISHED_MEAN

# Of the last convolution: the video then has a standard deviation of about 0.4.
_LAST_GAIN = 0.6


def write_released_wan_tokenizer(shape: WanTokenizerShape, folder: Path, *, seed: int) -> None:
    """Writes a random tokenizer.pth, Wan2.1's names in a plain state dict, into `folder`, made if need be.

    The released tokenizer's statistics are published and in no file. Where they cannot serve, because `shape`
    has another number of latent channels, random ones lie beside it in a config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, names = random_weights(shape, seed=seed), released_names(shape)
    torch.save({names[name]: values for name, values in weights.items()}, folder / "tokenizer.pth")
    if shape.latent_channels != len(PUBLISHED_MEAN):
        config = _random_statistics(shape.latent_channels, torch.Generator().manual_seed(seed))
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def random_weights(
    shape: WanTokenizerShape, *, seed: int, parts: Collection[str] = PARTS
) -> dict[str, Tensor]:
    """Float32 weights under diffusers' names that make videos about -1..1 from unit normal latents.

    Those of one part are the same with and without the other.
    """
    weights = {}
    for part in parts:
        draw = torch.Generator().manual_seed(2 * seed + PARTS.index(part))
        for name, sizes in tensor_shapes(shape, parts=(part,)).items():
            weights[name] = _random_tensor(name, sizes, draw)
    return weights


def _random_tensor(name: str, sizes: tuple[int, ...], draw: torch.Generator) -> Tensor:
    values = torch.randn(sizes, generator=draw)
    if name.endswith(".gamma"):
        return 1 + 0.1 * values
    gain = _LAST_GAIN if name.startswith("decoder.conv_out.") else 1.0
    if name.endswith(".bias"):
        return 0.1 * gain * values
    return gain / math.sqrt(math.prod(sizes[1:])) * values


def _random_statistics(count: int, draw: torch.Generator) -> dict[str, list[float]]:
    mean = 0.1 * torch.randn(count, generator=draw)
    return {"latents_mean": mean.tolist(), "latents_std": (0.5 + torch.rand(count, generator=draw)).tolist()}
