"""What the layers of the autoregressive transformer are made of, from numbers and a back end."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional as F

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.token_transformer.layers import (
    AttentionSubmodules,
    CrossAttention,
    SelfAttention,
    TokenLayer,
    TokenLayerSubmodules,
)


def layer_spec(shape: TokenShape, backend: Backend) -> ModuleSpec:
    """One layer out of the back end's linears and norms; its MLP is Megatron's."""
    linears = {"linear_proj": backend.row_linear, "norm": backend.rms_norm}
    cross_attention = ModuleSpec(
        module=CrossAttention,
        params={"text_dim": shape.text_dim},
        submodules=AttentionSubmodules(
            linear_q=backend.column_linear, linear_kv=backend.column_linear, **linears
        ),
    )
    return ModuleSpec(
        module=TokenLayer,
        submodules=TokenLayerSubmodules(
            norm=backend.rms_norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                submodules=AttentionSubmodules(linear_qkv=backend.column_linear, **linears),
            ),
            cross_attention=cross_attention if shape.takes_text else None,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=backend.column_linear, linear_fc2=backend.row_linear),
            ),
        ),
    )


def transformer_config(
    shape: TokenShape, *, backend: Backend, pg_collection: ProcessGroupCollection, dtype: torch.dtype
) -> TransformerConfig:
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_hidden_size,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        bias_activation_fusion=False,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        qk_layernorm=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=pg_collection.tp.size(),
        perform_initialization=False,
        **backend.meta_config,
    )
