"""An autoregressive transformer as NeMo's torch_dist, or in the released names as model.pt or safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.token_formats import Stored, TokenFormat, token_rules_for
from cosmos_nemo.checkpoint.writer.nemo_context import NeMoContext
from cosmos_nemo.checkpoint.writer.new_path import new_path
from cosmos_nemo.checkpoint.writer.pieces import pieces_by
from cosmos_nemo.checkpoint.writer.safetensors import write_file
from cosmos_nemo.checkpoint.writer.torch_dist import write_pieces

NEMO = Stored(TokenFormat.NEMO, "module.")
RELEASED = Stored(TokenFormat.RELEASED, "model.")


def write_token_torch_dist(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: TokenShape,
    card_overrides: Mapping[str, Any] | None = None,
    context: NeMoContext | None = None,
) -> None:
    """Writes `folder/weights/` with the layers stacked, as write_torch_dist does, whose arguments these are.

    `tensors` has every name of token_formats.token_parameter_shapes(shape).
    """
    pieces = pieces_by(token_rules_for(shape, NEMO), tensors)
    write_pieces(folder, pieces, card_overrides=card_overrides, context=context)


def write_token_model_pt(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: TokenShape,
    card_overrides: Mapping[str, Any] | None = None,
) -> None:
    """Writes `folder/model.pt` in the released names; else as write_token_torch_dist.

    torch.save wants the whole network in memory.
    """
    rules = token_rules_for(shape, RELEASED)
    assert tensors.keys() == rules.keys(), f"not the network: {sorted(tensors.keys() ^ rules.keys())[:3]}"
    with new_path(folder) as partial:
        partial.mkdir()
        content = {
            stored: part.contiguous().clone()  # a view would be saved with all that it is a view of
            for name, rule in rules.items()
            for stored, part in zip(rule.names, rule.split(tensors[name].read()), strict=True)
        }
        torch.save(content, partial / "model.pt")
        write_card_file(partial, dict(card_overrides or {}))


def write_token_safetensors(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: TokenShape,
    card_overrides: Mapping[str, Any] | None = None,
) -> None:
    """Writes `folder/model.safetensors` in the released names, a tensor at a time; else as the others."""
    with new_path(folder) as partial:
        partial.mkdir()
        write_file(partial / "model.safetensors", tensors, rules=token_rules_for(shape, RELEASED))
        write_card_file(partial, dict(card_overrides or {}))
