"""Random discrete video tokenizers in the released layouts, to try everything without the weights."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint.discrete_tokenizer_names import PARTS, tensor_shapes
from cosmos_nemo.checkpoint.writer.discrete_tokenizer import (
    archive_tensors,
    write_discrete_tokenizer_safetensors,
)
from cosmos_nemo.tools.standin_tokenizer import random_tensor, write_archive

# Of the convolution before the codes: what it makes then varies by about 1 in each channel, so that most
# values of each are used and a video has many different ids.
_CODE_GAIN = 3.0


def write_released_discrete_tokenizer(
    shape: DiscreteTokenizerShape, folder: Path, *, seed: int, layout: Literal["jit", "safetensors"] = "jit"
) -> None:
    """Writes a random tokenizer into `folder`, made if need be.

    "jit" is the layout of nvidia/Cosmos-Tokenize1-DV8x16x16-720p: encoder.jit and decoder.jit, of which only
    the tensors are real (running them returns the input); "safetensors" is one tokenizer.safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "safetensors":
        write_discrete_tokenizer_safetensors(folder, shape, random_discrete_weights(shape, seed=seed))
        return
    for part in PARTS:
        weights = random_discrete_weights(shape, seed=seed, parts=(part,))
        write_archive(archive_tensors(shape, weights, parts=(part,)), folder / f"{part}.jit")


def random_discrete_weights(
    shape: DiscreteTokenizerShape, *, seed: int, parts: Collection[str] = PARTS
) -> dict[str, Tensor]:
    """Float32 weights under diffusers' names that make many different ids, and videos about -1..1 of them.

    Those of one part are the same with and without the other.
    """
    weights = {}
    for part in parts:
        draw = torch.Generator().manual_seed(2 * seed + PARTS.index(part))
        for name, sizes in tensor_shapes(shape, parts=(part,)).items():
            gain = _CODE_GAIN if name == "quant_conv.weight" else 1.0
            weights[name] = gain * random_tensor(name, sizes, draw)
    return weights
