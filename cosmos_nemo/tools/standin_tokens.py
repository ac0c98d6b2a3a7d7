"""Random autoregressive transformers in the released layouts, to try everything without the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.token_formats import token_parameter_shapes
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_model_pt, write_token_torch_dist

_LIVELY = 3.0
"""Of the output's rows: so that some tokens are clearly likelier than others."""


def write_token_transformer(
    shape: TokenShape, folder: Path, *, inner: str, seed: int, card_overrides: Mapping[str, Any] | None = None
) -> None:
    """Writes model.pt into `folder`, or with `inner` a NeMo checkpoint into that folder of it."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: LazyTensor.of(random_token_parameter(name, size, generator).to(torch.bfloat16))
        for name, size in token_parameter_shapes(shape).items()
    }
    write = write_token_torch_dist if inner else write_token_model_pt
    write(folder / inner, weights, shape=shape, card_overrides=card_overrides)


def random_token_parameter(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """One parameter of that name and size, float32 on the generator's device; logits come out lively."""
    device = generator.device
    if len(size) == 1:  # the only vectors are the weights of norms
        return torch.ones(size, device=device)
    gain = _LIVELY if name == "output_layer.weight" else 1.0
    scale = 1.0 if name.startswith("embedding.") else gain * size[-1] ** -0.5
    return torch.randn(size, generator=generator, device=device) * scale
