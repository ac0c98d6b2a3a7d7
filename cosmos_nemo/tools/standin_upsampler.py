"""A prompt upsampler of nano size that answers every prompt with one sentence, in the released layout."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.language_names import language_shapes
from cosmos_nemo.checkpoint.writer.prompt_upsampler import END, SPECIAL, TURN_END, write_upsampler_folder
from cosmos_nemo.checkpoint.writer.text_encoder import Vocabulary, english_vocabulary

NANO_UPSAMPLER = LanguageShape(
    num_layers=2,
    hidden_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_hidden_size=192,
    vocab_size=640,
)
"""As in the released model, the heads together are narrower than the hidden state."""

ANSWER = (
    "▁In",
    "▁soft",
    "▁light",
    "▁the",
    "▁camera",
    "▁holds",
    "▁still",
    "▁while",
    "▁a",
    "▁scene",
    "▁moves",
    "▁slowly",
    "▁from",
    "▁left",
    "▁to",
    "▁right",
    ".",
)
"""The answer's tokens, no two the same, because each decides the next."""

_LAYER_SCALE = 0.1
"""Of what a layer adds to the hidden state: small, so that the token shows through it."""


def write_upsampler(folder: Path, *, seed: int) -> dict[str, Any]:
    """Writes model.pt (bfloat16), the tokenizer and card.json into `folder`; returns what card.json holds.

    The weights are random but for the output's, which follow each token of the answer by the next. The same
    seed writes the same bytes.
    """
    vocabulary = _vocabulary()
    weights = _weights(NANO_UPSAMPLER, [piece for piece, _ in vocabulary], seed=seed)
    write_upsampler_folder(folder, shape=NANO_UPSAMPLER, vocabulary=vocabulary, weights=weights)
    sizes = {
        field.name: getattr(NANO_UPSAMPLER, field.name)
        for field in dataclasses.fields(LanguageShape)
        if getattr(NANO_UPSAMPLER, field.name) != field.default
    }
    write_card_file(folder, {"upsampler": sizes})
    return {"upsampler": sizes}


def _vocabulary() -> Vocabulary:
    words = english_vocabulary(token.removeprefix("▁") for token in ANSWER)
    # Those of the text encoder's special tokens have no score; a chat has its own.
    return [(token, 0.0) for token in SPECIAL] + [(piece, score) for piece, score in words if score]


def _weights(shape: LanguageShape, pieces: Sequence[str], *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _random(name, size, generator) for name, size in language_shapes(shape).items()}
    table = weights["model.embed_tokens.weight"]
    following = torch.zeros(shape.vocab_size, shape.hidden_size)
    place = {piece: i for i, piece in enumerate(pieces)}
    for token, next_token in pairwise((TURN_END, *ANSWER, END)):
        following[place[next_token]] = table[place[token]]
    weights["lm_head.weight"] = following
    return {name: values.to(torch.bfloat16) for name, values in weights.items()}


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(size) == 1:  # the only vectors are the weights of norms
        return torch.ones(size)
    values = torch.randn(size, generator=generator)
    if name == "model.embed_tokens.weight":
        return values
    scale = _LAYER_SCALE if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
    return values * scale * size[-1] ** -0.5
