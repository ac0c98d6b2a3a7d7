"""Random video tokenizers in the layouts of the released ones, to try everything without the weights."""

import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.tokenizer_names import PARTS, tensor_shapes
from cosmos_nemo.checkpoint.writer.video_tokenizer import (
    released_tensors,
    write_tokenizer_safetensors,
    write_tokenizer_statistics,
)

# Of the last convolution: its 192 sub-band values then sum to a video of standard deviation about 0.4.
_LAST_GAIN = 0.08


def write_released_tokenizer(
    shape: TokenizerShape, folder: Path, *, seed: int, layout: Literal["jit", "safetensors"] = "jit"
) -> None:
    """Writes a random tokenizer and its statistics into `folder`, made if need be.

    "jit" is the layout of nvidia/Cosmos-1.0-Tokenizer-CV8x8x8: encoder.jit and decoder.jit, of which only the
    tensors are real (running them returns the input); "safetensors" is one tokenizer.safetensors. Both have
    NVIDIA's names and lie beside mean_std.pt and image_mean_std.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "jit":
        for part in PARTS:
            weights = random_weights(shape, seed=seed, parts=(part,))
            write_archive(released_tensors(shape, weights, parts=(part,)), folder / f"{part}.jit")
    else:
        write_tokenizer_safetensors(folder, shape, random_weights(shape, seed=seed))
    draw = torch.Generator().manual_seed(seed)
    video = _random_statistics(shape.latent_channels * shape.statistics_frames, draw)
    image = _random_statistics(shape.latent_channels, draw)
    write_tokenizer_statistics(folder, video=video, image=image)


def random_weights(shape: TokenizerShape, *, seed: int, parts: Collection[str] = PARTS) -> dict[str, Tensor]:
    """Float32 weights under diffusers' names that make videos about -1..1 from unit normal latents.

    Those of one part are the same with and without the other.
    """
    weights = {}
    for part in parts:
        draw = torch.Generator().manual_seed(2 * seed + PARTS.index(part))
        for name, sizes in tensor_shapes(shape, parts=(part,)).items():
            weights[name] = random_tensor(name, sizes, draw)
    return weights


def random_tensor(name: str, sizes: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """One of a tokenizer's tensors, which diffusers calls `name`, as `random_weights` says."""
    values = torch.randn(sizes, generator=draw)
    if name.endswith("norm.weight"):
        return 1 + 0.1 * values
    gain = _LAST_GAIN if name.startswith("decoder.conv_out.conv_t.") else 1.0
    if name.endswith(".bias"):
        return 0.1 * gain * values
    return gain / math.sqrt(math.prod(sizes[1:])) * values


def _random_statistics(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    mean = 0.1 * torch.randn(count, generator=draw)
    return mean, 0.5 + torch.rand(count, generator=draw)


class _Branch(nn.Module):
    """A node of the archive's module tree."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def write_archive(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a TorchScript module that holds tensors of these names and returns its input."""
    root = _Branch()
    for name, values in tensors.items():
        *branches, leaf = name.split(".")
        node: nn.Module = root
        for branch in branches:
            if not hasattr(node, branch):
                node.add_module(branch, _Branch())
            node = node.get_submodule(branch)
        node.register_buffer(leaf, values)
    with warnings.catch_warnings():
        # torch calls its own format deprecated; the released tokenizers are in it all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(root.eval()).save(str(path))
