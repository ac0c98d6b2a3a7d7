"""Names and shapes of the autoregressive transformer's tensors, and the formats it is stored in.

Ours are Megatron's GPTModel's on its local layer specification, one entry per layer. NeMo's checkpoints stack
the layers and name the norms as Transformer Engine's fused layers do; a released model.pt has names of its
own, below `model.` (spec/predict1-autoregressive.md, 2).
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.reader.base import Index, full_index
from cosmos_nemo.checkpoint.rules import GroupedHeads, InterleavedHeads, Rule, Same, Shape, StackedLayer

_TOP = {
    "embedding.word_embeddings.weight": "tok_embeddings.weight",
    "decoder.final_layernorm.weight": "norm.weight",
    "output_layer.weight": "output.weight",
}
_LAYER_NAMES: dict[str, tuple[str, ...]] = {
    "input_layernorm.weight": ("attention_norm.weight",),
    "self_attention.linear_qkv.weight": tuple(f"attention.w{part}.weight" for part in "qkv"),
    "self_attention.linear_proj.weight": ("attention.wo.weight",),
    "self_attention.q_layernorm.weight": ("attention.q_norm.weight",),
    "self_attention.k_layernorm.weight": ("attention.k_norm.weight",),
    "pre_cross_attn_layernorm.weight": ("cross_attention_norm.weight",),
    "cross_attention.linear_q.weight": ("cross_attention.wq.weight",),
    "cross_attention.linear_kv.weight": tuple(f"cross_attention.w{part}.weight" for part in "kv"),
    "cross_attention.linear_proj.weight": ("cross_attention.wo.weight",),
    "cross_attention.q_layernorm.weight": ("cross_attention.q_norm.weight",),
    "cross_attention.k_layernorm.weight": ("cross_attention.k_norm.weight",),
    "pre_mlp_layernorm.weight": ("ffn_norm.weight",),
    "mlp.linear_fc1.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
    "mlp.linear_fc2.weight": ("feed_forward.w2.weight",),
}
# Transformer Engine's linears hold the norm before them; Megatron's local layers are named as ours.
_FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
# States of other software, tables that are recomputed, the optimizer of a training.
_IGNORED = re.compile(r"_extra_state|(^|\.)(optimizer|rotary_pos_emb|rope|cache_[kv])\b")


class TokenFormat(Enum):
    """How the network is stored; the value is how a layer's names begin, with its number where it has one."""

    NEMO = r"decoder\.layers\.self_attention\."
    RELEASED = r"layers\.(\d+)\.attention\.w"


class Stored(NamedTuple):
    """A file's format, what stands before its names, and whether its norms lie in the linears after them."""

    format_: TokenFormat
    prefix: str
    fused_norms: bool = True

    def names(self, name: str) -> tuple[str, ...]:
        """The file's names for our `name`."""
        match = _LAYER.fullmatch(name)
        if self.format_ is TokenFormat.RELEASED:
            own = (_TOP[name],) if match is None else _LAYER_NAMES[match[2]]
            layer = "" if match is None else f"layers.{match[1]}."
            return tuple(f"{self.prefix}{layer}{each}" for each in own)
        if match is None:
            return (self.prefix + name,)
        inner = _FUSED_NORMS.get(match[2], match[2]) if self.fused_norms else match[2]
        return (f"{self.prefix}decoder.layers.{inner}",)


@dataclass(frozen=True, kw_only=True)
class StackedGate(StackedLayer):
    """Entry `layer` of a tensor with the MLP's gate and its other half below each other, all layers stacked.

    Ours alternates them in runs of `rows`: what one tensor parallel rank has of the gate, then of the other
    half. Along the first axis an `index` must take whole pairs of runs.
    """

    rows: int

    def read(self, checkpoint: Checkpoint, index: Index = ()) -> Tensor:
        rows, columns = full_index(index, shape=self.shape)
        assert rows.start % (2 * self.rows) == rows.stop % (2 * self.rows) == 0, "a rank's rows are cut"
        starts = range(rows.start // 2, rows.stop // 2, self.rows)
        half, entry = self.shape[0] // 2, slice(self.layer, self.layer + 1)
        pieces = [
            checkpoint.read(self.names[0], (entry, slice(at, at + self.rows), columns))[0]
            for start in starts
            for at in (start, half + start)
        ]
        return torch.cat(pieces)

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        runs = tensor.view(-1, 2, self.rows, tensor.shape[-1])
        return (runs.transpose(0, 1).reshape(1, *tensor.shape),)


def token_parameter_shapes(shape: TokenShape) -> dict[str, Shape]:
    """Our name -> shape of the whole (unsplit) tensor, of every parameter of the network."""
    width, head = shape.hidden_size, shape.head_dim
    queries, keys = shape.num_heads * head, shape.num_kv_heads * head
    cross_attention = {
        "pre_cross_attn_layernorm.weight": (width,),
        "cross_attention.linear_q.weight": (queries, width),
        "cross_attention.linear_kv.weight": (2 * keys, shape.text_dim),
        "cross_attention.linear_proj.weight": (width, queries),
        "cross_attention.q_layernorm.weight": (head,),
        "cross_attention.k_layernorm.weight": (head,),
    }
    layer: dict[str, Shape] = {
        "input_layernorm.weight": (width,),
        "self_attention.linear_qkv.weight": (queries + 2 * keys, width),
        "self_attention.linear_proj.weight": (width, queries),
        "self_attention.q_layernorm.weight": (head,),
        "self_attention.k_layernorm.weight": (head,),
        **(cross_attention if shape.takes_text else {}),
        "pre_mlp_layernorm.weight": (width,),
        "mlp.linear_fc1.weight": (2 * shape.ffn_hidden_size, width),
        "mlp.linear_fc2.weight": (width, shape.ffn_hidden_size),
    }
    return {
        "embedding.word_embeddings.weight": (shape.embedding_rows, width),
        **{
            f"decoder.layers.{i}.{name}": size
            for i in range(shape.num_layers)
            for name, size in layer.items()
        },
        "decoder.final_layernorm.weight": (width,),
        "output_layer.weight": (shape.vocab_size, width),
    }


def token_rules_for(shape: TokenShape, stored: Stored, *, tensor_parallel_size: int = 1) -> dict[str, Rule]:
    """Our name -> how the tensor is stored in such a file.

    Megatron gives each tensor parallel rank its rows of the MLP's gate and of its other half in one tensor;
    the whole tensor is taken to have them in the ranks' order, so that a rank's part is a slice of it.
    """
    rows = shape.ffn_hidden_size // tensor_parallel_size
    rule = _stacked_rule if stored.format_ is TokenFormat.NEMO else _released_rule
    return {
        name: rule(name, names=stored.names(name), size=size, shape=shape, rows=rows)
        for name, size in token_parameter_shapes(shape).items()
    }


def _stacked_rule(name: str, *, names: tuple[str, ...], size: Shape, shape: TokenShape, rows: int) -> Rule:
    match = _LAYER.fullmatch(name)
    if match is None:
        return Same(names=names, shape=size)
    layer, count = int(match[1]), shape.num_layers
    if match[2] == "mlp.linear_fc1.weight":
        return StackedGate(names=names, shape=size, layer=layer, num_layers=count, rows=rows)
    return StackedLayer(names=names, shape=size, layer=layer, num_layers=count)


def _released_rule(name: str, *, names: tuple[str, ...], size: Shape, shape: TokenShape, rows: int) -> Rule:
    if name.endswith("self_attention.linear_qkv.weight"):
        return GroupedHeads(names=names, shape=size, head_dim=shape.head_dim, num_groups=shape.num_kv_heads)
    if name.endswith("cross_attention.linear_kv.weight"):
        return InterleavedHeads(names=names, shape=size, head_dim=shape.head_dim)
    if name.endswith("mlp.linear_fc1.weight"):
        return InterleavedHeads(names=names, shape=size, head_dim=rows)
    return Same(names=names, shape=size)


def token_network_names(checkpoint: Checkpoint) -> list[str]:
    """Names in the file without those that no network needs."""
    return [name for name in checkpoint.names() if not _IGNORED.search(name)]


def detect_token_format(checkpoint: Checkpoint) -> Stored:
    """How the file stores the network; CheckpointError if it holds none."""
    names = token_network_names(checkpoint)
    for format_ in TokenFormat:
        prefixes = Counter(name[: m.start()] for name in names if (m := re.search(format_.value, name)))
        if prefixes:
            prefix = prefixes.most_common(1)[0][0]
            fused = any(name.endswith(".layer_norm_weight") for name in names)
            return Stored(format_, prefix, fused_norms=fused)
    some = ", ".join(names[:3]) or "none at all"
    raise CheckpointError(
        f"{checkpoint.path} holds no autoregressive transformer of Cosmos: its {len(names):,} tensors are "
        f"{some}"
    )


def expected_tensors(rules: Mapping[str, Rule]) -> dict[str, Shape]:
    """The file's names and shapes."""
    return {
        name: size
        for rule in rules.values()
        for name, size in zip(rule.names, rule.stored_shapes(), strict=True)
    }
