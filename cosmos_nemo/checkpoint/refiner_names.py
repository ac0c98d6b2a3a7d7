"""Sizes, names and shapes of Qwen2.5-VL: a vision tower whose last layer speaks to a Qwen2.5 language model.

Names are those of transformers' Qwen2_5_VLForConditionalGeneration; released files have them in the older
form, without `model.language_model.` and `model.visual.`, and what a newer transformers saves as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.mismatch import complaint
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.rules import Rule, Same, Shape

_MODEL_TYPE = "qwen2_5_vl"

_LANGUAGE, _TOWER, _HEAD = "model.language_model.", "model.visual.", "lm_head.weight"
_EMBEDDINGS = f"{_LANGUAGE}embed_tokens.weight"
_OLD_LANGUAGE, _OLD_TOWER = "model.", "visual."

_REQUIRED = 0
"""Stands for a size that no file leaves out."""


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """The vision tower. A language token stands for merge_size x merge_size patches."""

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_hidden_size: int
    num_colors: int
    patch_size: int
    """In pixels."""
    merge_size: int
    num_patch_frames: int
    """Frames that a patch spans; an image is repeated."""


@dataclass(frozen=True, kw_only=True)
class RefinerShape:
    """The whole model, as its folder's config.json has it."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    vocab_size: int
    max_length: int
    """Tokens that it reads and writes together."""
    is_tied: bool
    """The embeddings are the output's weights too."""
    image_token: int
    tower: TowerShape


def refiner_shape(folder: Path) -> RefinerShape:
    """From config.json. CheckpointError unless it is a Qwen2.5-VL's.

    What the file leaves out is as transformers takes it then.
    """
    path = folder / "config.json"
    content = read_json(path, lacking="is no Qwen2.5-VL folder")
    if content.get("model_type") != _MODEL_TYPE:
        raise CheckpointError(
            f"{folder} holds a {content.get('model_type')} model where a Qwen2.5-VL is needed "
            f"(Qwen2.5-VL-7B-Instruct, Cosmos-Reason1-7B): config.json must say model_type {_MODEL_TYPE}."
        )
    text, vision = (_part(path, content, name) for name in ("text_config", "vision_config"))
    text = content | text
    shape = RefinerShape(
        num_layers=_size(path, text, "num_hidden_layers"),
        hidden_size=_size(path, text, "hidden_size"),
        num_heads=_size(path, text, "num_attention_heads"),
        num_kv_heads=_size(path, text, "num_key_value_heads"),
        ffn_hidden_size=_size(path, text, "intermediate_size"),
        vocab_size=_size(path, text, "vocab_size", 152_064),
        max_length=_size(path, text, "max_position_embeddings", 32_768),
        is_tied=bool(text.get("tie_word_embeddings", False)),
        image_token=_size(path, content, "image_token_id", 151_655),
        tower=_tower_shape(path, vision),
    )
    if (out := _size(path, vision, "out_hidden_size", 3_584)) != shape.hidden_size:
        raise CheckpointError(
            f"{path}: the vision tower speaks to a model of width {out}, not {shape.hidden_size}."
        )
    return shape


def refiner_shapes(shape: RefinerShape) -> dict[str, Shape]:
    """Our name -> shape of every parameter of the model."""
    return {
        **{_TOWER + name: size for name, size in _tower_shapes(shape.tower, shape.hidden_size).items()},
        **{_LANGUAGE + name: size for name, size in _language_shapes(shape).items()},
        _HEAD: (shape.vocab_size, shape.hidden_size),
    }


def refiner_rules(shape: RefinerShape, checkpoint: Checkpoint) -> dict[str, Rule]:
    """Our name -> how the tensor is read from `checkpoint`, whose form its names tell.

    CheckpointError if a tensor is missing (with the nearest name in the file), unexpected or misshapen.
    """
    held = {name: checkpoint.shape(name) for name in checkpoint.names() if not name.endswith("inv_freq")}
    if not any(name.startswith((_TOWER, _OLD_TOWER)) for name in held):
        some = ", ".join(list(held)[:3]) or "none at all"
        raise CheckpointError(
            f"{checkpoint.path} holds no Qwen2.5-VL: none of its {len(held):,} tensors belongs to a vision "
            f"tower. They are {some}"
        )
    is_old = not any(name.startswith(_TOWER) for name in held)
    stored = released_name if is_old else str
    rules: dict[str, Rule] = {
        name: Same(names=(stored(name),), shape=size) for name, size in refiner_shapes(shape).items()
    }
    if shape.is_tied and _HEAD not in held:
        rules[_HEAD] = rules[_EMBEDDINGS]
    if wrong := complaint({rule.names[0]: rule.stored_shape() for rule in rules.values()}, held):
        raise CheckpointError(
            f"{checkpoint.path}: {wrong}. Is it complete, and the model of its config.json, with "
            f"{shape.num_layers} layers of width {shape.hidden_size} and a vision tower of "
            f"{shape.tower.num_layers} of {shape.tower.hidden_size}?"
        )
    return rules


def released_name(ours: str) -> str:
    """The name that the parameter has in the released files."""
    if ours.startswith(_TOWER):
        return _OLD_TOWER + ours.removeprefix(_TOWER)
    return _OLD_LANGUAGE + ours.removeprefix(_LANGUAGE) if ours.startswith(_LANGUAGE) else ours


def _part(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = content.get(name, {})
    if not isinstance(part, dict):
        raise CheckpointError(f"{path}: {name} must be an object, but is {part!r}.")
    return part


def _tower_shape(path: Path, vision: Mapping[str, Any]) -> TowerShape:
    return TowerShape(
        num_layers=_size(path, vision, "depth", 32),
        hidden_size=_size(path, vision, "hidden_size", 3_584),
        num_heads=_size(path, vision, "num_heads", 16),
        ffn_hidden_size=_size(path, vision, "intermediate_size", 3_420),
        num_colors=_size(path, vision, "in_channels", 3),
        patch_size=_size(path, vision, "patch_size", 14),
        merge_size=_size(path, vision, "spatial_merge_size", 2),
        num_patch_frames=_size(path, vision, "temporal_patch_size", 2),
    )


def _size(path: Path, settings: Mapping[str, Any], name: str, otherwise: int = _REQUIRED) -> int:
    value = settings.get(name, otherwise)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        found = f"is {value!r}" if name in settings else "is missing"
        raise CheckpointError(f"{path}: {name} must be a whole number above 0, but {found}.")
    return value


def _language_shapes(shape: RefinerShape) -> dict[str, Shape]:
    width, wide = shape.hidden_size, shape.ffn_hidden_size
    narrow = width // shape.num_heads * shape.num_kv_heads
    layer = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.q_proj.bias": (width,),
        "self_attn.k_proj.weight": (narrow, width),
        "self_attn.k_proj.bias": (narrow,),
        "self_attn.v_proj.weight": (narrow, width),
        "self_attn.v_proj.bias": (narrow,),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (wide, width),
        "mlp.up_proj.weight": (wide, width),
        "mlp.down_proj.weight": (width, wide),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {
        "embed_tokens.weight": (shape.vocab_size, width),
        **{f"layers.{i}.{name}": size for i in range(shape.num_layers) for name, size in layer.items()},
        "norm.weight": (width,),
    }


def _tower_shapes(tower: TowerShape, language_width: int) -> dict[str, Shape]:
    width, wide, merged = tower.hidden_size, tower.ffn_hidden_size, tower.hidden_size * tower.merge_size**2
    layer = {
        "norm1.weight": (width,),
        "norm2.weight": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.gate_proj.weight": (wide, width),
        "mlp.gate_proj.bias": (wide,),
        "mlp.up_proj.weight": (wide, width),
        "mlp.up_proj.bias": (wide,),
        "mlp.down_proj.weight": (width, wide),
        "mlp.down_proj.bias": (width,),
    }
    patch = (tower.num_colors, tower.num_patch_frames, tower.patch_size, tower.patch_size)
    return {
        "patch_embed.proj.weight": (width, *patch),
        **{f"blocks.{i}.{name}": size for i in range(tower.num_layers) for name, size in layer.items()},
        "merger.ln_q.weight": (width,),
        "merger.mlp.0.weight": (merged, merged),
        "merger.mlp.0.bias": (merged,),
        "merger.mlp.2.weight": (language_width, merged),
        "merger.mlp.2.bias": (language_width,),
    }
