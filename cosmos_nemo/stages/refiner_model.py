"""transformers' Qwen2.5-VL, filled in place on its device."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.refiner_names import refiner_rules, refiner_shape

_SECTIONS = "mrope_section"


def build_refiner(
    folder: Path, *, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The Qwen2_5_VLForConditionalGeneration of folder/config.json, filled tensor by tensor.

    CheckpointError as refiner_names.refiner_rules', before any memory is taken.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    rules = refiner_rules(refiner_shape(folder), checkpoint)
    config = refiner_config(folder)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    _compute_tables(model, device=device)
    load_into(model, checkpoint=checkpoint, rules=rules)
    return model


def refiner_config(folder: Path) -> Any:
    """transformers' Qwen2_5_VLConfig of folder/config.json; CheckpointError if it does not accept it."""
    from transformers import Qwen2_5_VLConfig

    path = folder / "config.json"
    content = read_json(path)
    for part in (content, content.get("text_config") or {}):
        _say_rotary_settings_as_before(part)
    try:
        config = Qwen2_5_VLConfig.from_dict(content)
    except Exception as error:  # some releases check with exceptions of their own kinds
        raise CheckpointError(f"{path} is no config of a Qwen2.5-VL: {error}") from error
    rotary = getattr(config.text_config, "rope_parameters", None) or config.text_config.rope_scaling or {}
    if _SECTIONS not in rotary:
        raise CheckpointError(
            f"{path} does not say {_SECTIONS} (how a head's angles follow time, rows and columns)."
        )
    return config


def _say_rotary_settings_as_before(part: dict[str, Any]) -> None:
    """Every transformers reads the two older settings; an older one overlooks what a newer one writes."""
    newer = part.pop("rope_parameters", None)
    if newer:
        scaling = dict(newer)
        if "rope_theta" in scaling:
            part["rope_theta"] = scaling.pop("rope_theta")
        part["rope_scaling"] = scaling


def _compute_tables(model: Any, *, device: torch.device) -> None:
    """The rotary tables, in float32: no file holds them, and to_empty has left garbage in them."""
    vision = model.config.vision_config
    half_head = vision.hidden_size // vision.num_heads // 2
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            own = {buffer for buffer, _ in child.named_buffers(recurse=False)}
            if own - child.state_dict().keys():
                # The vision tower's module has not always kept its configuration.
                made_of = getattr(child, "config", half_head)
                setattr(parent, name, type(child)(made_of).to(device))
