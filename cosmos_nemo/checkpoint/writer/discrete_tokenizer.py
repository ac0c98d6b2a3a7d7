"""A discrete video tokenizer's file with NVIDIA's names."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint.discrete_tokenizer_names import PARTS, tensor_shapes, upstream_name

_QUANTISERS = {"encoder": "quantizer", "decoder": "inv_quant.quantizer"}
_PATCHERS = {"encoder": "encoder.patcher3d", "decoder": "decoder.unpatcher3d"}


def write_discrete_tokenizer_safetensors(
    folder: Path, shape: DiscreteTokenizerShape, weights: Mapping[str, Tensor]
) -> None:
    """Writes tokenizer.safetensors, both parts, into `folder`; `weights` have diffusers' names."""
    from safetensors.torch import save

    tensors = {upstream_name(name, shape): weights[name].contiguous() for name in tensor_shapes(shape)}
    # Not save_file, whose files only their owner may read.
    (folder / "tokenizer.safetensors").write_bytes(save(tensors))


def archive_tensors(
    shape: DiscreteTokenizerShape, weights: Mapping[str, Tensor], *, parts: Collection[str] = PARTS
) -> dict[str, Tensor]:
    """Weights under NVIDIA's names with the constants that the released archives of `parts` hold too."""
    named = {upstream_name(name, shape): weights[name] for name in tensor_shapes(shape, parts=parts)}
    for part in parts:
        quantiser, patcher = _QUANTISERS[part], _PATCHERS[part]
        named[f"{patcher}.wavelets"] = torch.full((2,), 0.5**0.5)
        named[f"{patcher}._arange"] = torch.arange(2)
        levels = torch.tensor(shape.levels, dtype=torch.int32)
        named[f"{quantiser}._levels"] = levels
        named[f"{quantiser}._basis"] = torch.cumprod(levels, 0, dtype=torch.int32) // levels
        named[f"{quantiser}.implicit_codebook"] = torch.zeros(math.prod(shape.levels), len(levels))
    if "encoder" in parts:
        named["encoder.patcher3d.patch_size_buffer"] = torch.tensor([shape.patch_size], dtype=torch.int32)
    return named
