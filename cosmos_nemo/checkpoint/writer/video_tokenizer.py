"""A video tokenizer's folder with NVIDIA's names: the weights as safetensors, the statistics as released."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.tokenizer_names import PARTS, tensor_shapes, upstream_name

Pair = tuple[Tensor, Tensor]


def write_tokenizer_safetensors(folder: Path, shape: TokenizerShape, weights: Mapping[str, Tensor]) -> None:
    """Writes tokenizer.safetensors, both parts, into `folder`; `weights` have diffusers' names."""
    from safetensors.torch import save

    # Not save_file, whose files only their owner may read.
    (folder / "tokenizer.safetensors").write_bytes(save(released_tensors(shape, weights)))


def write_tokenizer_statistics(folder: Path, *, video: Pair, image: Pair) -> None:
    """Writes mean_std.pt and image_mean_std.pt: mean and standard deviation of the latents.

    video: two of C * statistics_frames values, or [C, T]; image: two of C values.
    """
    for (mean, std), name in ((video, "mean_std.pt"), (image, "image_mean_std.pt")):
        torch.save((mean.float().flatten(), std.float().flatten()), folder / name)


def released_tensors(
    shape: TokenizerShape, weights: Mapping[str, Tensor], *, parts: Collection[str] = PARTS
) -> dict[str, Tensor]:
    """Weights under NVIDIA's names with the constants that the released archives hold beside them."""
    haar = {"wavelets": torch.full((2,), 0.5**0.5), "_arange": torch.arange(2.0)}
    patchers = {"encoder": "encoder.patcher3d", "decoder": "decoder.unpatcher3d"}
    constants = {
        f"{patchers[part]}.{name}": values.clone() for part in parts for name, values in haar.items()
    }
    if "encoder" in parts:
        constants["encoder.patcher3d.patch_size_buffer"] = torch.tensor([float(shape.patch_size)])
    named = {upstream_name(name, shape): weights[name] for name in tensor_shapes(shape, parts=parts)}
    return named | constants
