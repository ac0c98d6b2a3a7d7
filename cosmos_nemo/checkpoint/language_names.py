"""Names and shapes of a Mistral language model's tensors: transformers' MistralForCausalLM and Mistral's own.

Ours are transformers' names. A released prompt upsampler's model.pt has Mistral's, bare or below `model.`.
There the rotary embedding turns neighbouring rows of a query or key head, where transformers turns row i and
row i + head_dim / 2, so the rows of the two projections are in another order.
"""

import re
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.mismatch import complaint
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.reader.base import Index, full_index
from cosmos_nemo.checkpoint.rules import Rule, Same, Shape

_NATIVE_TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_NATIVE_LAYER = {
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_ROTATED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NATIVE_MARKER = re.compile(r"(model\.)?layers\.\d+\.attention\.wq\.weight")
_OUR_MARKER = re.compile(r"model\.layers\.\d+\.self_attn\.q_proj\.weight")
# States of other software, and tables that are recomputed.
_IGNORED = re.compile(r"_extra_state|rotary_emb\.inv_freq$")


@dataclass(frozen=True, kw_only=True)
class RotaryPairs(Rule):
    """Heads whose rotary pairs are neighbouring rows in the file, and half a head apart in ours.

    Along the first axis an `index` must take whole heads.
    """

    head_dim: int

    def stored_shape(self) -> Shape:
        return self.shape

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        rows, columns = full_index(index, shape=self.shape)
        assert rows.start % self.head_dim == rows.stop % self.head_dim == 0, "a head is cut"
        stored = checkpoint.read(self.names[0], (rows, columns))
        pairs = self.head_dim // 2
        return rearrange(stored, "(head pair two) column -> (head two pair) column", pair=pairs, two=2)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        pairs = self.head_dim // 2
        return (rearrange(tensor, "(head two pair) column -> (head pair two) column", pair=pairs, two=2),)


def language_shapes(shape: LanguageShape) -> dict[str, Shape]:
    """Our name -> shape of every parameter of the model."""
    width, wide = shape.hidden_size, shape.ffn_hidden_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (wide, width),
        "mlp.up_proj.weight": (wide, width),
        "mlp.down_proj.weight": (width, wide),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {
        "model.embed_tokens.weight": (shape.vocab_size, width),
        **{f"model.layers.{i}.{name}": size for i in range(shape.num_layers) for name, size in layer.items()},
        "model.norm.weight": (width,),
        "lm_head.weight": (shape.vocab_size, width),
    }


def native_rules(shape: LanguageShape, *, prefix: str = "") -> dict[str, Rule]:
    """Our name -> how the tensor is stored in a file of Mistral's names, which start with `prefix`."""
    rules: dict[str, Rule] = {}
    for name, size in language_shapes(shape).items():
        match = _LAYER.fullmatch(name)
        if match is None:
            rules[name] = Same(names=(prefix + _NATIVE_TOP[name],), shape=size)
            continue
        layer, inner = match.groups()
        names = (f"{prefix}layers.{layer}.{_NATIVE_LAYER[inner]}",)
        rules[name] = (
            RotaryPairs(names=names, shape=size, head_dim=shape.head_dim)
            if inner in _ROTATED
            else Same(names=names, shape=size)
        )
    return rules


def language_rules(shape: LanguageShape, checkpoint: Checkpoint) -> dict[str, Rule]:
    """Our name -> how the tensor is read from `checkpoint`, in Mistral's or in transformers' names.

    CheckpointError if a tensor is missing (with the nearest name in the file), unexpected or misshapen.
    """
    held = [name for name in checkpoint.names() if not _IGNORED.search(name)]
    rules = _rules_for(shape, checkpoint, held)
    expected = {rule.names[0]: rule.stored_shape() for rule in rules.values()}
    if wrong := complaint(expected, {name: checkpoint.shape(name) for name in held}):
        raise CheckpointError(
            f"{checkpoint.path}: {wrong}. Is it complete, and a language model of "
            f"{shape.num_layers} layers and width {shape.hidden_size}?"
        )
    return rules


def _rules_for(shape: LanguageShape, checkpoint: Checkpoint, held: list[str]) -> dict[str, Rule]:
    native = next((match for name in held if (match := _NATIVE_MARKER.fullmatch(name))), None)
    if native is not None:
        return native_rules(shape, prefix=native[1] or "")
    if any(_OUR_MARKER.fullmatch(name) for name in held):
        return {name: Same(names=(name,), shape=size) for name, size in language_shapes(shape).items()}
    some = ", ".join(held[:3]) or "none at all"
    raise CheckpointError(
        f"{checkpoint.path} holds no Mistral language model: its {len(held):,} tensors are {some}"
    )
