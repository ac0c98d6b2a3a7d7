"""Layers of the autoregressive transformer (spec/predict1-autoregressive.md, 1).

Attribute names are those of Megatron's GPTModel on its local layer specification.
Legend: S tokens, L text length, B batch, D width, N query heads and M key heads of this tensor parallel rank,
K head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from cosmos_nemo.models.common.linears import column, row
from cosmos_nemo.models.common.rope import apply_rope
from cosmos_nemo.models.token_transformer.attention import attend_to_all
from cosmos_nemo.models.token_transformer.positions import Positions

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q_SBNK, k_SBMK, v_SBMK of the tokens at hand -> SBNK; what else is attended to, it knows itself."""


class TextKeyValue(NamedTuple):
    """Keys and values of the text for one layer, each [L, B, M, K]; the same for every token of a video."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class AttentionSubmodules:
    linear_proj: type
    norm: type
    linear_qkv: type | None = None
    linear_q: type | None = None
    linear_kv: type | None = None


@dataclass(frozen=True)
class TokenLayerSubmodules:
    norm: type
    self_attention: ModuleSpec
    mlp: ModuleSpec
    cross_attention: ModuleSpec | None = None


class SelfAttention(MegatronModule):
    """Queries and keys are normed per head, then rotated; each key head serves a group of query heads."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: AttentionSubmodules,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config)
        width, inner = config.hidden_size, config.num_attention_heads * config.kv_channels
        keys = config.num_query_groups * config.kv_channels
        self.num_kv_heads = config.num_query_groups // pg_collection.tp.size()
        self.group = config.num_attention_heads // config.num_query_groups
        self.linear_qkv = column(submodules.linear_qkv, width, inner + 2 * keys, config, pg_collection)
        self.linear_proj = row(submodules.linear_proj, inner, width, config, pg_collection)
        self.q_layernorm = rms_norm(submodules.norm, config.kv_channels, config)
        self.k_layernorm = rms_norm(submodules.norm, config.kv_channels, config)

    def forward(self, hidden_SBD: Tensor, positions: Positions, attend: Attend) -> Tensor:
        qkv, _ = self.linear_qkv(hidden_SBD)
        # Each key head's rows: the queries of its group, the key, the value.
        qkv = rearrange(qkv, "s b (m r k) -> s b m r k", m=self.num_kv_heads, r=self.group + 2)
        q = rearrange(qkv[..., : self.group, :], "s b m g k -> s b (m g) k")
        k, v = qkv[..., -2, :], qkv[..., -1, :]
        # Rotated together: of one token both are small, and every kernel costs the same.
        heads = torch.cat((self.q_layernorm(q), self.k_layernorm(k.contiguous())), dim=2)
        q, k = apply_rope(heads, positions.cos, positions.sin).split((q.shape[2], k.shape[2]), dim=2)
        return self.linear_proj(rearrange(attend(q, k, v), "s b n k -> s b (n k)"))[0]


class CrossAttention(MegatronModule):
    """Attention to all positions of the text, without rotation or mask.

    Megatron's own refuses groups of query heads, and makes the text's keys anew for every token.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: AttentionSubmodules,
        pg_collection: ProcessGroupCollection,
        text_dim: int,
    ) -> None:
        super().__init__(config)
        width, inner = config.hidden_size, config.num_attention_heads * config.kv_channels
        keys = config.num_query_groups * config.kv_channels
        self.num_heads = config.num_attention_heads // pg_collection.tp.size()
        self.num_kv_heads = config.num_query_groups // pg_collection.tp.size()
        self.linear_q = column(submodules.linear_q, width, inner, config, pg_collection)
        self.linear_kv = column(submodules.linear_kv, text_dim, 2 * keys, config, pg_collection)
        self.linear_proj = row(submodules.linear_proj, inner, width, config, pg_collection)
        self.q_layernorm = rms_norm(submodules.norm, config.kv_channels, config)
        self.k_layernorm = rms_norm(submodules.norm, config.kv_channels, config)

    def encode_text(self, text_LBD: Tensor) -> TextKeyValue:
        kv, _ = self.linear_kv(text_LBD)
        k, v = rearrange(kv, "l b (m two k) -> two l b m k", m=self.num_kv_heads, two=2)
        return TextKeyValue(self.k_layernorm(k.contiguous()), v.contiguous())

    def forward(self, hidden_SBD: Tensor, text: TextKeyValue) -> Tensor:
        q, _ = self.linear_q(hidden_SBD)
        q = self.q_layernorm(rearrange(q, "s b (n k) -> s b n k", n=self.num_heads))
        return self.linear_proj(rearrange(attend_to_all(q, text.k, text.v), "s b n k -> s b (n k)"))[0]


class TokenLayer(MegatronModule):
    """Self attention, attention to the text if the model has any, and a gated MLP; each after a norm."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TokenLayerSubmodules,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config)
        self.input_layernorm = rms_norm(submodules.norm, config.hidden_size, config)
        self.self_attention = build_module(
            submodules.self_attention, config=config, pg_collection=pg_collection
        )
        self.cross_attention = None
        if submodules.cross_attention is not None:
            self.pre_cross_attn_layernorm = rms_norm(submodules.norm, config.hidden_size, config)
            self.cross_attention = build_module(
                submodules.cross_attention, config=config, pg_collection=pg_collection
            )
        self.pre_mlp_layernorm = rms_norm(submodules.norm, config.hidden_size, config)
        self.mlp = build_module(
            submodules.mlp,
            config=config,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=pg_collection.tp,
        )

    def forward(
        self, hidden_SBD: Tensor, *, positions: Positions, text: TextKeyValue | None, attend: Attend
    ) -> Tensor:
        """A model that attends to text adds the embedding of its positions again before every layer."""
        hidden = hidden_SBD if positions.absolute is None else hidden_SBD + positions.absolute
        hidden = hidden + self.self_attention(self.input_layernorm(hidden), positions, attend)
        if self.cross_attention is not None:
            assert text is not None
            hidden = hidden + self.cross_attention(self.pre_cross_attn_layernorm(hidden), text)
        return hidden + self.mlp(self.pre_mlp_layernorm(hidden))[0]


def rms_norm(norm: type, width: int, config: TransformerConfig) -> nn.Module:
    return build_module(norm, hidden_size=width, eps=config.layernorm_epsilon, dtype=config.params_dtype)
