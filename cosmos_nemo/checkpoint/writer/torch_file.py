"""model.pt as Predict1 and Predict2 were released."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.formats import RELEASED
from cosmos_nemo.checkpoint.names import rules_for
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer.new_path import new_path


def write_model_pt(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: DiTShape,
    card_overrides: Mapping[str, Any] | None = None,
) -> None:
    """Writes `folder/model.pt` in the released names of its family; arguments, errors as write_safetensors'.

    torch.save wants the whole network in memory.
    """
    rules = rules_for(shape, RELEASED[shape.family], prefix="net.")
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
