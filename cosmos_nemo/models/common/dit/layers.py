"""Layers of both diffusion transformers (spec/predict1-diffusion.md 1.2, spec/predict2-video2world.md 1.4).

Attribute names are those of the NeMo checkpoint (spec/nemo-cosmos1.md 3.2), so that one loads without a map.
Legend: s tokens of this context parallel rank, R runs of them, B batch, D width, N heads of this tensor
parallel rank, K head width, L text length.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from cosmos_nemo.models.common.fused import (
    Runs,
    add_and_modulate,
    add_gated,
    norm_and_modulate,
    norm_and_rotate,
    norm_heads,
)
from cosmos_nemo.models.common.linears import column, row

NORM_EPSILON = 1e-6
"""Of every norm. NeMo's own Cosmos code ran with 1e-5 by accident (spec/nemo-cosmos1.md 0.10)."""


class KeyValue(NamedTuple):
    """Keys and values of the text for one layer, each [L, B, N, K]; the same for every step of a video."""

    k: Tensor
    v: Tensor


class Modulation(NamedTuple):
    """How the noise level bends one sub-layer: x + gate * f(norm(x) * (1 + scale) + shift).

    Each [B, D] for all tokens, or [R, B, D] where runs of tokens have levels of their own.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor


class LayerModulation(NamedTuple):
    self_attention: Modulation
    cross_attention: Modulation
    mlp: Modulation


class Rope(NamedTuple):
    """Cosines and sines of the rotary angles, float32 [s, 1, 1, K]."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class AttentionSubmodules:
    linear_q: type | None = None
    linear_kv: type | None = None
    linear_qkv: type | None = None
    linear_proj: type | None = None
    norm: type | None = None
    core_attention: type | ModuleSpec | None = None


@dataclass(frozen=True)
class DiTLayerSubmodules:
    full_self_attention: ModuleSpec
    cross_attention: ModuleSpec
    mlp: ModuleSpec


class SelfAttention(MegatronModule):
    """Full attention among all tokens of the video; queries and keys are normed per head, then rotated."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: AttentionSubmodules,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config)
        width, heads = config.hidden_size, config.num_attention_heads // pg_collection.tp.size()
        self.num_heads = heads
        self.linear_qkv = column(submodules.linear_qkv, width, 3 * width, config, pg_collection)
        self.linear_proj = row(submodules.linear_proj, width, width, config, pg_collection)
        self.q_layernorm = _head_norm(submodules.norm, config)
        self.k_layernorm = _head_norm(submodules.norm, config)
        self.core_attention = build_module(
            submodules.core_attention, num_heads=heads, head_dim=config.kv_channels, cp=pg_collection.cp
        )

    def forward(self, hidden_sBD: Tensor, rope: Rope, num_tokens: int) -> Tensor:
        qkv, _ = self.linear_qkv(hidden_sBD)
        q, k, v = rearrange(qkv, "s b (n three k) -> three s b n k", n=self.num_heads, three=3)
        q = norm_and_rotate(q, self.q_layernorm, rope.cos, rope.sin, eps=NORM_EPSILON)
        k = norm_and_rotate(k, self.k_layernorm, rope.cos, rope.sin, eps=NORM_EPSILON)
        out = self.core_attention(q, k, v, num_tokens)
        return self.linear_proj(rearrange(out, "s b n k -> s b (n k)"))[0]


class CrossAttention(MegatronModule):
    """Attention of the video's tokens to all text positions, without mask: padding is zero vectors, attended.

    Megatron's own has no q/k norm and takes the context to be as wide as the model.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: AttentionSubmodules,
        pg_collection: ProcessGroupCollection,
        text_dim: int,
    ) -> None:
        super().__init__(config)
        width, heads = config.hidden_size, config.num_attention_heads // pg_collection.tp.size()
        self.num_heads = heads
        self.linear_q = column(submodules.linear_q, width, width, config, pg_collection)
        self.linear_kv = column(submodules.linear_kv, text_dim, 2 * width, config, pg_collection)
        self.linear_proj = row(submodules.linear_proj, width, width, config, pg_collection)
        self.q_layernorm = _head_norm(submodules.norm, config)
        self.k_layernorm = _head_norm(submodules.norm, config)
        self.core_attention = build_module(
            submodules.core_attention, num_heads=heads, head_dim=config.kv_channels, cp=None
        )

    def encode_text(self, text_LBD: Tensor) -> KeyValue:
        kv, _ = self.linear_kv(text_LBD)
        k, v = rearrange(kv, "l b (n two k) -> two l b n k", n=self.num_heads, two=2)
        return KeyValue(self.k_layernorm(k), v.contiguous())

    def forward(self, hidden_sBD: Tensor, text: KeyValue) -> Tensor:
        q, _ = self.linear_q(hidden_sBD)
        q = rearrange(q, "s b (n k) -> s b n k", n=self.num_heads)
        q = norm_heads(q, self.q_layernorm, eps=NORM_EPSILON)
        out = self.core_attention(q, text.k, text.v, q.shape[0])
        return self.linear_proj(rearrange(out, "s b n k -> s b (n k)"))[0]


class AdaLN(nn.Module):
    """Modulation of a layer's three sub-layers from the timestep, by low-rank matrices fused over the three.

    A released checkpoint has zeros off the second matrix' diagonal blocks; a post-trained one does not.
    """

    def __init__(self, hidden_size: int, lora_dim: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(),
            nn.Linear(hidden_size, 3 * lora_dim, bias=False, dtype=dtype),
            nn.Linear(3 * lora_dim, 9 * hidden_size, bias=False, dtype=dtype),
        )

    def forward(self, timestep_BD: Tensor, lora_B3D: Tensor) -> LayerModulation:
        """Of [R, B, D] and [R, B, 3 D] too."""
        parts = rearrange(
            self.adaLN_modulation(timestep_BD), "... (sub three d) -> sub three ... d", sub=3, three=3
        )
        parts = parts + rearrange(lora_B3D, "... (three d) -> three ... d", three=3)
        return LayerModulation(*(Modulation(*sub) for sub in parts))


class DiTLayer(MegatronModule):
    """One block: position table, self attention, cross attention, MLP, each modulated by the noise level."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: DiTLayerSubmodules,
        pg_collection: ProcessGroupCollection,
        adaln_lora_dim: int,
    ) -> None:
        super().__init__(config)
        self.full_self_attention = build_module(
            submodules.full_self_attention, config=config, pg_collection=pg_collection
        )
        self.cross_attention = build_module(
            submodules.cross_attention, config=config, pg_collection=pg_collection
        )
        self.mlp = build_module(
            submodules.mlp,
            config=config,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=pg_collection.tp,
        )
        self.adaLN = AdaLN(config.hidden_size, adaln_lora_dim, dtype=config.params_dtype)

    def forward(self, hidden_sBD: Tensor, **arguments: Any) -> Tensor:
        """arguments: as of `parts`."""
        return deque(self.parts(hidden_sBD, **arguments), maxlen=1).pop()

    def parts(
        self,
        hidden_sBD: Tensor,
        *,
        modulation: LayerModulation,
        text: KeyValue,
        rope: Rope,
        positions_s1D: Tensor | None,
        num_tokens: int,
        runs: Runs | None = None,
    ) -> Iterator[Tensor]:
        """The tokens [s, B, D] after self attention, after cross attention, and after the MLP.

        A position table, if there is one, is added again at the start of every layer (spec 1.2, step 7).
        runs: which tokens of this rank each row of the modulation is for.
        """
        to_video, to_text, to_mlp = modulation
        if positions_s1D is None:
            hidden, normed = hidden_sBD, modulate(hidden_sBD, to_video, runs)
        else:
            hidden, normed = _add_and_modulate(hidden_sBD, positions_s1D, None, to_video, runs)
        change = self.full_self_attention(normed, rope, num_tokens)
        hidden, normed = _add_and_modulate(hidden, change, to_video.gate, to_text, runs)
        yield hidden
        change = self.cross_attention(normed, text)
        hidden, normed = _add_and_modulate(hidden, change, to_text.gate, to_mlp, runs)
        yield hidden
        del change
        yield add_gated(hidden, self.mlp(normed)[0], to_mlp.gate, runs=runs)


def modulate(hidden_sBD: Tensor, by: Modulation, runs: Runs | None = None) -> Tensor:
    """norm(x) * (1 + scale) + shift, with a LayerNorm that has no parameters."""
    return norm_and_modulate(hidden_sBD, by.shift, by.scale, eps=NORM_EPSILON, runs=runs)


def _add_and_modulate(
    hidden_sBD: Tensor, change_sBD: Tensor, gate_BD: Tensor | None, by: Modulation, runs: Runs | None
) -> tuple[Tensor, Tensor]:
    """The tokens with a change, and what the next sub-layer, bent by `by`, sees of them."""
    return add_and_modulate(hidden_sBD, change_sBD, gate_BD, by.shift, by.scale, eps=NORM_EPSILON, runs=runs)


def _head_norm(norm: type | None, config: TransformerConfig) -> nn.Module:
    return build_module(norm, hidden_size=config.kv_channels, eps=NORM_EPSILON, dtype=config.params_dtype)
