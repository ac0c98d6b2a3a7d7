"""Names and shapes of Pixtral's tensors: a vision tower, an adapter of two linears, a Mistral language model.

Ours are those of transformers' LlavaForConditionalGeneration. Files come in four layouts: that of the
Predict1 scripts, Mistral's own, transformers' on the hub, and what a newer transformers saves. The first two
have Mistral's order of rotary rows in both attentions (see language_names).
"""

import re
from dataclasses import dataclass

from cosmos_nemo.catalog import LanguageShape, VisionShape
from cosmos_nemo.checkpoint.language_names import RotaryPairs, language_shapes, native_rules
from cosmos_nemo.checkpoint.mismatch import complaint
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.rules import Rule, Same, Shape

_LANGUAGE, _HEAD = "model.language_model.", "lm_head.weight"
_TOWER = "model.vision_tower."
_ADAPTER, _LINEARS = "model.multi_modal_projector.", ("linear_1", "linear_2")

_NATIVE_TOWER_LAYER = {
    "attention.q_proj.weight": "attention.wq.weight",
    "attention.k_proj.weight": "attention.wk.weight",
    "attention.v_proj.weight": "attention.wv.weight",
    "attention.o_proj.weight": "attention.wo.weight",
    "feed_forward.gate_proj.weight": "feed_forward.w1.weight",
    "feed_forward.down_proj.weight": "feed_forward.w2.weight",
    "feed_forward.up_proj.weight": "feed_forward.w3.weight",
    "attention_norm.weight": "attention_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
}
_ROTATED = ("attention.q_proj.weight", "attention.k_proj.weight")

_LAYER = re.compile(r"(transformer\.layers\.\d+\.)(.+)")
# States of other software, and tables that are recomputed.
_IGNORED = re.compile(r"_extra_state|inv_freq$")
_NUM_COLORS = 3


@dataclass(frozen=True, kw_only=True)
class PixtralLayout:
    """How a file's names of each part begin. Without a `head`, what follows are Mistral's names."""

    language: str
    tower: str
    adapter: str
    linears: tuple[str, str]
    head: str = ""

    @property
    def is_native(self) -> bool:
        """Mistral's names, and its order of rotary rows."""
        return not self.head


LAYOUTS = {
    "predict1": PixtralLayout(
        language="model.",
        tower="vision_encoder.",
        adapter="mm_projector.",
        linears=("projector.0", "projector.2"),
    ),
    "mistral": PixtralLayout(
        language="", tower="vision_encoder.", adapter="vision_language_adapter.", linears=("w_in", "w_out")
    ),
    "transformers": PixtralLayout(
        language="language_model.model.",
        tower="vision_tower.",
        adapter="multi_modal_projector.",
        linears=_LINEARS,
        head="language_model.lm_head.weight",
    ),
    "transformers-new": PixtralLayout(
        language=_LANGUAGE, tower=_TOWER, adapter=_ADAPTER, linears=_LINEARS, head=_HEAD
    ),
}


def pixtral_shapes(shape: LanguageShape, vision: VisionShape) -> dict[str, Shape]:
    """Our name -> shape of every parameter of the model."""
    width, wide = shape.hidden_size, vision.hidden_size
    return {
        **{_TOWER + name: size for name, size in _tower_shapes(vision).items()},
        f"{_ADAPTER}{_LINEARS[0]}.weight": (width, wide),
        f"{_ADAPTER}{_LINEARS[0]}.bias": (width,),
        f"{_ADAPTER}{_LINEARS[1]}.weight": (width, width),
        f"{_ADAPTER}{_LINEARS[1]}.bias": (width,),
        **{_ours(name): size for name, size in language_shapes(shape).items()},
    }


def layout_rules(layout: PixtralLayout, shape: LanguageShape, vision: VisionShape) -> dict[str, Rule]:
    """Our name -> how the tensor is stored in a file of that layout."""
    shapes = pixtral_shapes(shape, vision)
    return {
        **_tower_rules(layout, vision),
        **{
            name: Same(names=(_adapter_name(layout, name),), shape=size)
            for name, size in shapes.items()
            if name.startswith(_ADAPTER)
        },
        **_language_rules(layout, shape),
    }


def pixtral_rules(shape: LanguageShape, vision: VisionShape, checkpoint: Checkpoint) -> dict[str, Rule]:
    """Our name -> how the tensor is read from `checkpoint`, whose layout its names tell.

    CheckpointError if a tensor is missing (with the nearest name in the file), unexpected or misshapen.
    """
    held = {name: checkpoint.shape(name) for name in checkpoint.names() if not _IGNORED.search(name)}
    layout = next(
        (each for each in LAYOUTS.values() if any(name.startswith(each.adapter) for name in held)), None
    )
    if layout is None:
        some = ", ".join(list(held)[:3]) or "none at all"
        raise CheckpointError(
            f"{checkpoint.path} holds no Pixtral: none of its {len(held):,} tensors joins images to a "
            f"language model. They are {some}"
        )
    rules = layout_rules(layout, shape, vision)
    if wrong := complaint({rule.names[0]: rule.stored_shape() for rule in rules.values()}, held):
        raise CheckpointError(
            f"{checkpoint.path}: {wrong}. Is it complete, and a Pixtral of {shape.num_layers} layers of "
            f"width {shape.hidden_size} with a vision tower of {vision.num_layers} of {vision.hidden_size}?"
        )
    return rules


def _ours(language_name: str) -> str:
    return language_name if language_name == _HEAD else _LANGUAGE + language_name.removeprefix("model.")


def _adapter_name(layout: PixtralLayout, ours: str) -> str:
    linear, kind = ours.removeprefix(_ADAPTER).split(".")
    return f"{layout.adapter}{layout.linears[_LINEARS.index(linear)]}.{kind}"


def _language_rules(layout: PixtralLayout, shape: LanguageShape) -> dict[str, Rule]:
    if layout.is_native:
        return {_ours(name): rule for name, rule in native_rules(shape, prefix=layout.language).items()}
    return {
        _ours(name): Same(
            names=(layout.head if name == _HEAD else layout.language + name.removeprefix("model."),),
            shape=size,
        )
        for name, size in language_shapes(shape).items()
    }


def _tower_shapes(vision: VisionShape) -> dict[str, Shape]:
    width, wide = vision.hidden_size, vision.ffn_hidden_size
    layer = {
        "attention.q_proj.weight": (width, width),
        "attention.k_proj.weight": (width, width),
        "attention.v_proj.weight": (width, width),
        "attention.o_proj.weight": (width, width),
        "feed_forward.gate_proj.weight": (wide, width),
        "feed_forward.up_proj.weight": (wide, width),
        "feed_forward.down_proj.weight": (width, wide),
        "attention_norm.weight": (width,),
        "ffn_norm.weight": (width,),
    }
    return {
        "patch_conv.weight": (width, _NUM_COLORS, vision.patch_size, vision.patch_size),
        "ln_pre.weight": (width,),
        **{
            f"transformer.layers.{i}.{name}": size
            for i in range(vision.num_layers)
            for name, size in layer.items()
        },
    }


def _tower_rules(layout: PixtralLayout, vision: VisionShape) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for name, size in _tower_shapes(vision).items():
        match = _LAYER.fullmatch(name)
        if match is None or not layout.is_native:
            rules[_TOWER + name] = Same(names=(layout.tower + name,), shape=size)
            continue
        layer, inner = match.groups()
        names = (layout.tower + layer + _NATIVE_TOWER_LAYER[inner],)
        rules[_TOWER + name] = (
            RotaryPairs(names=names, shape=size, head_dim=vision.hidden_size // vision.num_heads)
            if inner in _ROTATED
            else Same(names=names, shape=size)
        )
    return rules
