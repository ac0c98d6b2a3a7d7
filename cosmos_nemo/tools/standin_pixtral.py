"""A Pixtral of nano size that describes every image with one sentence, in each layout of the released one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape, VisionShape, find_card, overrides_of
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.pixtral_names import pixtral_shapes
from cosmos_nemo.checkpoint.writer.pixtral import END, MARKS, TURN_END, Layout, write_pixtral_folder
from cosmos_nemo.checkpoint.writer.text_encoder import Vocabulary, english_vocabulary

NANO_PIXTRAL = LanguageShape(
    num_layers=2,
    hidden_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_hidden_size=192,
    vocab_size=640,
    rope_theta=1e9,
    max_length=4700,
)
NANO_VISION = VisionShape(
    num_layers=2, hidden_size=32, num_heads=2, ffn_hidden_size=64, patch_size=16, max_image_size=256
)

DESCRIPTION = (
    "▁A",
    "▁small",
    "▁robot",
    "▁stands",
    "▁on",
    "▁the",
    "▁table",
    "▁and",
    "▁slowly",
    "▁moves",
    "▁its",
    "▁hand",
    "▁toward",
    "▁a",
    "▁red",
    "▁flower",
    ".",
)
"""The answer's tokens, no two the same, because each decides the next."""

_LAYER_SCALE = 0.1
"""Of what a layer adds to the hidden state: small, so that the token shows through it."""

_EMBEDDINGS, _OUTPUT = "model.language_model.embed_tokens.weight", "lm_head.weight"


def write_pixtral(folder: Path, *, seed: int, layout: Layout = "predict1") -> None:
    """Writes the weights (bfloat16), their sizes and the tokenizer into `folder`: NANO_PIXTRAL, NANO_VISION.

    card.json says in what they differ from the released Pixtral. The weights are random but for the output's,
    which follow each token of the description by the next. The same seed writes the same bytes.
    """
    vocabulary = _vocabulary()
    write_pixtral_folder(
        folder,
        shape=NANO_PIXTRAL,
        vision=NANO_VISION,
        vocabulary=vocabulary,
        weights=_weights([piece for piece, _ in vocabulary], seed=seed),
        layout=layout,
    )
    card = find_card("Cosmos-Predict1-7B-Video2World")
    write_card_file(folder, overrides_of(replace(card, upsampler=NANO_PIXTRAL, vision=NANO_VISION), card))


def _vocabulary() -> Vocabulary:
    words = english_vocabulary(token.removeprefix("▁") for token in DESCRIPTION)
    # Those of the text encoder's special tokens have no score; a chat has its own.
    return [(mark, 0.0) for mark in MARKS] + [(piece, score) for piece, score in words if score]


def _weights(pieces: Sequence[str], *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = pixtral_shapes(NANO_PIXTRAL, NANO_VISION)
    weights = {name: _random(name, size, generator) for name, size in shapes.items()}
    table, following = weights[_EMBEDDINGS], torch.zeros(shapes[_OUTPUT])
    place = {piece: i for i, piece in enumerate(pieces)}
    for token, next_token in pairwise((TURN_END, *DESCRIPTION, END)):
        following[place[next_token]] = table[place[token]]
    weights[_OUTPUT] = following
    return {name: values.to(torch.bfloat16) for name, values in weights.items()}


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith(".bias"):
        return torch.zeros(size)
    if len(size) == 1:  # the other vectors are the weights of norms
        return torch.ones(size)
    values = torch.randn(size, generator=generator)
    if name == _EMBEDDINGS:
        return values
    scale = _LAYER_SCALE if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
    return values * scale * torch.Size(size[1:]).numel() ** -0.5
