"""A random diffusion decoder in its released layout, to try everything without the weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.aux_vars import write_aux_vars
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer import write_model_pt
from cosmos_nemo.tools.standin_network import random_network


def nano_decoder(shape: DiTShape) -> DiTShape:
    """`shape` at about 1/1000 of its parameters, as standin_card's networks; it takes the same tokens."""
    heads, head_dim = shape.num_heads // 4, 32
    return replace(
        shape,
        num_layers=shape.num_layers // 7,
        hidden_size=heads * head_dim,
        num_heads=heads,
        ffn_hidden_size=4 * heads * head_dim,
        adaln_lora_dim=shape.adaln_lora_dim // 8,
        text_dim=shape.text_dim // 16,
    )


def write_diffusion_decoder(
    shape: DiTShape, folder: Path, *, seed: int, card_overrides: Mapping[str, Any] | None = None
) -> None:
    """Writes model.pt and aux_vars.pt into the new `folder`, and what it is told as its card.json."""
    weights = {name: LazyTensor.of(tensor) for name, tensor in random_network(shape, seed=seed).items()}
    write_model_pt(folder, weights, shape=shape, card_overrides=card_overrides)
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, shape.text_length, shape.text_dim, generator=generator)
    write_aux_vars(folder, text.to(torch.bfloat16))
