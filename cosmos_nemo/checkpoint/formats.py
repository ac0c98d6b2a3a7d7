"""The formats a diffusion transformer is stored in, as tables of names.

Sources: spec/predict1-diffusion.md, 2, spec/predict2-video2world.md, 2, and spec/nemo-cosmos1.md, 3.2.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cosmos_nemo.catalog import Family
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.rules import (
    BlockDiagonal,
    InterleavedHeads,
    JoinedRows,
    Rule,
    Same,
    StackedLayer,
)

Stored = tuple[type[Rule], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to store the network. A name that no table holds is stored as it is, under our name.

    `marker` is how a layer's names begin (with the layer's number, unless all are `stacked` in one tensor),
    `top` maps names outside the layers, `layer` those inside, where the file's stand below `layer_prefix`.
    """

    name: str
    marker: str
    stacked: bool = False
    top: Mapping[str, str] = field(default_factory=dict)
    layer_prefix: str = "decoder.layers.{layer}."
    layer: Mapping[str, Stored] = field(default_factory=dict)

    def stored(self, name: str) -> Stored:
        """The file's names for our `name`, and the rule that makes ours of them."""
        match = _LAYER.fullmatch(name)
        if match is None:
            return Same, (self.top.get(name, name),)
        layer, inner = match.groups()
        if self.stacked:
            return StackedLayer, (f"decoder.layers.{inner}",)
        kind, names = self.layer.get(inner, (Same, (inner,)))
        return kind, tuple(self.layer_prefix.format(layer=layer) + name for name in names)

    def num_layers(self, names: Iterable[str]) -> int:
        """One more than the highest number of a layer in `names`; 0 if all layers are stacked."""
        numbers = (re.search(self.marker, name) for name in names)
        return max((int(found[1]) + 1 for found in numbers if found and found.groups()), default=0)


_PREDICT1_LAYER: dict[str, Stored] = {
    "adaLN.adaLN_modulation.1.weight": (
        JoinedRows,
        tuple(f"blocks.{part}.adaLN_modulation.1.weight" for part in range(3)),
    ),
    "adaLN.adaLN_modulation.2.weight": (
        BlockDiagonal,
        tuple(f"blocks.{part}.adaLN_modulation.2.weight" for part in range(3)),
    ),
    "full_self_attention.linear_qkv.weight": (
        InterleavedHeads,
        tuple(f"blocks.0.block.attn.to_{part}.0.weight" for part in "qkv"),
    ),
    "full_self_attention.linear_proj.weight": (Same, ("blocks.0.block.attn.to_out.0.weight",)),
    "full_self_attention.q_layernorm.weight": (Same, ("blocks.0.block.attn.to_q.1.weight",)),
    "full_self_attention.k_layernorm.weight": (Same, ("blocks.0.block.attn.to_k.1.weight",)),
    "cross_attention.linear_q.weight": (Same, ("blocks.1.block.attn.to_q.0.weight",)),
    "cross_attention.linear_kv.weight": (
        InterleavedHeads,
        tuple(f"blocks.1.block.attn.to_{part}.0.weight" for part in "kv"),
    ),
    "cross_attention.linear_proj.weight": (Same, ("blocks.1.block.attn.to_out.0.weight",)),
    "cross_attention.q_layernorm.weight": (Same, ("blocks.1.block.attn.to_q.1.weight",)),
    "cross_attention.k_layernorm.weight": (Same, ("blocks.1.block.attn.to_k.1.weight",)),
    "mlp.linear_fc1.weight": (Same, ("blocks.2.block.layer1.weight",)),
    "mlp.linear_fc2.weight": (Same, ("blocks.2.block.layer2.weight",)),
}

_PREDICT2_SUBLAYERS = ("self_attn", "cross_attn", "mlp")
_PREDICT2_LAYER: dict[str, Stored] = {
    "adaLN.adaLN_modulation.1.weight": (
        JoinedRows,
        tuple(f"adaln_modulation_{part}.1.weight" for part in _PREDICT2_SUBLAYERS),
    ),
    "adaLN.adaLN_modulation.2.weight": (
        BlockDiagonal,
        tuple(f"adaln_modulation_{part}.2.weight" for part in _PREDICT2_SUBLAYERS),
    ),
    "full_self_attention.linear_qkv.weight": (
        InterleavedHeads,
        tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    ),
    "full_self_attention.linear_proj.weight": (Same, ("self_attn.output_proj.weight",)),
    "full_self_attention.q_layernorm.weight": (Same, ("self_attn.q_norm.weight",)),
    "full_self_attention.k_layernorm.weight": (Same, ("self_attn.k_norm.weight",)),
    "cross_attention.linear_q.weight": (Same, ("cross_attn.q_proj.weight",)),
    "cross_attention.linear_kv.weight": (
        InterleavedHeads,
        tuple(f"cross_attn.{part}_proj.weight" for part in "kv"),
    ),
    "cross_attention.linear_proj.weight": (Same, ("cross_attn.output_proj.weight",)),
    "cross_attention.q_layernorm.weight": (Same, ("cross_attn.q_norm.weight",)),
    "cross_attention.k_layernorm.weight": (Same, ("cross_attn.k_norm.weight",)),
    "mlp.linear_fc1.weight": (Same, ("mlp.layer1.weight",)),
    "mlp.linear_fc2.weight": (Same, ("mlp.layer2.weight",)),
}
_PREDICT2_TOP = {
    "affline_norm.weight": "t_embedding_norm.weight",
    "final_layer.adaLN_modulation.1.weight": "final_layer.adaln_modulation.1.weight",
    "final_layer.adaLN_modulation.2.weight": "final_layer.adaln_modulation.2.weight",
}

_DIFFUSERS_LAYER: dict[str, Stored] = {
    "adaLN.adaLN_modulation.1.weight": (
        JoinedRows,
        tuple(f"norm{part}.linear_1.weight" for part in (1, 2, 3)),
    ),
    "adaLN.adaLN_modulation.2.weight": (
        BlockDiagonal,
        tuple(f"norm{part}.linear_2.weight" for part in (1, 2, 3)),
    ),
    "full_self_attention.linear_qkv.weight": (
        InterleavedHeads,
        tuple(f"attn1.to_{part}.weight" for part in "qkv"),
    ),
    "full_self_attention.linear_proj.weight": (Same, ("attn1.to_out.0.weight",)),
    "full_self_attention.q_layernorm.weight": (Same, ("attn1.norm_q.weight",)),
    "full_self_attention.k_layernorm.weight": (Same, ("attn1.norm_k.weight",)),
    "cross_attention.linear_q.weight": (Same, ("attn2.to_q.weight",)),
    "cross_attention.linear_kv.weight": (
        InterleavedHeads,
        tuple(f"attn2.to_{part}.weight" for part in "kv"),
    ),
    "cross_attention.linear_proj.weight": (Same, ("attn2.to_out.0.weight",)),
    "cross_attention.q_layernorm.weight": (Same, ("attn2.norm_q.weight",)),
    "cross_attention.k_layernorm.weight": (Same, ("attn2.norm_k.weight",)),
    "mlp.linear_fc1.weight": (Same, ("ff.net.0.proj.weight",)),
    "mlp.linear_fc2.weight": (Same, ("ff.net.2.weight",)),
}

_DIFFUSERS_TOP = {
    "x_embedder.proj.1.weight": "patch_embed.proj.weight",
    "extra_pos_embedder.pos_emb_h": "learnable_pos_embed.pos_emb_h",
    "extra_pos_embedder.pos_emb_w": "learnable_pos_embed.pos_emb_w",
    "extra_pos_embedder.pos_emb_t": "learnable_pos_embed.pos_emb_t",
    "t_embedder.1.linear_1.weight": "time_embed.t_embedder.linear_1.weight",
    "t_embedder.1.linear_2.weight": "time_embed.t_embedder.linear_2.weight",
    "affline_norm.weight": "time_embed.norm.weight",
    "final_layer.adaLN_modulation.1.weight": "norm_out.linear_1.weight",
    "final_layer.adaLN_modulation.2.weight": "norm_out.linear_2.weight",
    "final_layer.linear.weight": "proj_out.weight",
}

NEMO = Format(name="nemo", marker=r"decoder\.layers\.[a-zA-Z]", stacked=True)
PREDICT1 = Format(
    name="predict1",
    marker=r"blocks\.block(\d+)\.",
    layer_prefix="blocks.block{layer}.",
    layer=_PREDICT1_LAYER,
)
PREDICT2 = Format(
    name="predict2",
    marker=r"(?<!_)blocks\.(\d+)\.",
    top=_PREDICT2_TOP,
    layer_prefix="blocks.{layer}.",
    layer=_PREDICT2_LAYER,
)
DIFFUSERS = Format(
    name="diffusers",
    marker=r"transformer_blocks\.(\d+)\.",
    top=_DIFFUSERS_TOP,
    layer_prefix="transformer_blocks.{layer}.",
    layer=_DIFFUSERS_LAYER,
)
IN_MEMORY = Format(name="in memory", marker=r"decoder\.layers\.(\d+)\.")
"""As the parameters of the network are called: every matrix has its place, fused ones too."""
_FORMATS = (NEMO, PREDICT1, PREDICT2, DIFFUSERS, IN_MEMORY)
RELEASED = {Family.COSMOS1: PREDICT1, Family.PREDICT2: PREDICT2, Family.TOKEN_DECODER: PREDICT1}
"""How the .pt files of each family name their tensors."""

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")

# Buffers that are recomputed, heads that only training uses, states of other software.
_IGNORED = re.compile(r"(^|\.)(logvar|pos_embedder|optimizer)\.|(^|\.)accum_|_extra_state")


def network_names(checkpoint: Checkpoint) -> list[str]:
    """Names in the file without those that no network needs."""
    return [name for name in checkpoint.names() if not _IGNORED.search(name)]


def detect_format(checkpoint: Checkpoint) -> tuple[Format, str]:
    """The format and what stands before its names; CheckpointError if the file holds none."""
    names = network_names(checkpoint)
    for format_ in _FORMATS:
        prefixes = Counter(name[: m.start()] for name in names if (m := re.search(format_.marker, name)))
        if prefixes:
            return format_, prefixes.most_common(1)[0][0]
    some = ", ".join(names[:3]) or "none at all"
    raise CheckpointError(
        f"{checkpoint.path} holds no diffusion transformer of Cosmos: its {len(names):,} tensors are {some}"
    )
