"""What the shapes in a file say about an autoregressive transformer, and which released model has them."""

import math
import re
from dataclasses import replace
from typing import Any

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.reader import Checkpoint
from cosmos_nemo.checkpoint.token_formats import TokenFormat, detect_token_format, token_network_names

_SMALL = TokenShape()
_LARGE = replace(_SMALL, num_layers=40, hidden_size=5120, rope_scale=2.0)
KNOWN_SHAPES = {
    "4B": _SMALL,
    "12B": _LARGE,
    "5B": replace(_SMALL, text_dim=1024),
    "13B": replace(_LARGE, text_dim=1024),
}
"""The released models by their sizes' names (spec/predict1-autoregressive.md, 1)."""

TOKEN_SIZES = (
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "ffn_hidden_size",
    "vocab_size",
    "text_dim",
)
"""The fields of a TokenShape that tensors' shapes tell."""


def infer_token_shape(checkpoint: Checkpoint) -> TokenShape | None:
    """The sizes in the file, and the rest from the released model of the nearest sizes.

    How angles are scaled and the video's size leave no trace in the tensors. None if a tensor that tells a
    size is absent.
    """
    stored = detect_token_format(checkpoint)
    present = set(token_network_names(checkpoint))

    def size(name: str, axis: int, part: int = 0) -> int:
        """Of the file's tensor of this number among those for our `name`; axes count from the end."""
        own = stored.names(name)[part]
        return checkpoint.shape(own)[axis] if own in present else 0

    layer = "decoder.layers.0."
    head_dim = size(layer + "self_attention.q_layernorm.weight", -1)
    if head_dim == 0:
        return None
    num_heads = size(layer + "self_attention.linear_proj.weight", -1) // head_dim
    if stored.format_ is TokenFormat.NEMO:
        num_layers = size(layer + "mlp.linear_fc2.weight", -3)
        num_kv_heads = (size(layer + "self_attention.linear_qkv.weight", -2) // head_dim - num_heads) // 2
    else:
        numbers = (re.search(stored.format_.value, name) for name in present)
        num_layers = max(int(found[1]) + 1 for found in numbers if found)
        num_kv_heads = size(layer + "self_attention.linear_qkv.weight", -2, part=1) // head_dim
    sizes = {
        "num_layers": num_layers,
        "hidden_size": size("decoder.final_layernorm.weight", -1),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "ffn_hidden_size": size(layer + "mlp.linear_fc2.weight", -1),
        "vocab_size": size("output_layer.weight", -2),
    }
    if min(sizes.values()) < 1:
        return None
    sizes["text_dim"] = size(layer + "cross_attention.linear_kv.weight", -1)
    _, nearest = nearest_known(_with_sizes(_SMALL, sizes))
    return _with_sizes(nearest, sizes)


def _with_sizes(shape: TokenShape, sizes: dict[str, Any]) -> TokenShape:
    return replace(shape, **sizes)


def same_token_sizes(one: TokenShape, other: TokenShape) -> bool:
    """Whether the two networks have the same tensors."""
    return all(getattr(one, name) == getattr(other, name) for name in TOKEN_SIZES)


def nearest_known(shape: TokenShape) -> tuple[str, TokenShape]:
    """The released model whose sizes are least off by factors; one that attends to text if this one does."""
    alike = {name: known for name, known in KNOWN_SHAPES.items() if known.takes_text == shape.takes_text}
    name = min(alike, key=lambda name: _distance(shape, alike[name]))
    return name, alike[name]


def describe(shape: TokenShape) -> str:
    """The released model with these sizes, else the sizes, in a few words."""
    name, known = nearest_known(shape)
    sizes = f"{shape.num_layers} layers, width {shape.hidden_size}"
    if same_token_sizes(shape, known):
        return f"the {name} ({sizes})"
    text = f", text width {shape.text_dim}" if shape.takes_text else ""
    heads = f"{shape.num_heads} and {shape.num_kv_heads} heads of {shape.head_dim}"
    return f"a network of {sizes}, {heads}, {shape.vocab_size} tokens{text}"


def advice(asked: TokenShape, checkpoint: Checkpoint) -> str:
    """What to do about a file that does not hold the network asked for."""
    found = infer_token_shape(checkpoint)
    if found is None or same_token_sizes(found, asked):
        return f"Is it {describe(asked)}, and complete?"
    return (
        f"It looks like {describe(found)}, and {describe(asked)} was asked for: pass the model that it is, "
        "another checkpoint, or put a card.json with its sizes beside it"
    )


def _distance(one: TokenShape, other: TokenShape) -> float:
    sizes = [(getattr(one, name), getattr(other, name)) for name in TOKEN_SIZES]
    return sum(abs(math.log(a / b)) for a, b in sizes if a and b)
