"""What the layers of a diffusion transformer are made of, from numbers and a back end."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional as F

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.common.dit.layers import (
    NORM_EPSILON,
    AttentionSubmodules,
    CrossAttention,
    DiTLayer,
    DiTLayerSubmodules,
    SelfAttention,
)


def layer_spec(shape: DiTShape, backend: Backend) -> ModuleSpec:
    """One transformer layer out of the back end's blocks; the MLP's activation stands in the config."""
    tokens = backend.tokens
    self_attention = AttentionSubmodules(
        linear_qkv=tokens.column_linear,
        linear_proj=tokens.row_linear,
        norm=backend.rms_norm,
        core_attention=tokens.self_attention,
    )
    cross_attention = AttentionSubmodules(
        linear_q=tokens.column_linear,
        linear_kv=backend.column_linear,
        linear_proj=tokens.row_linear,
        norm=backend.rms_norm,
        core_attention=backend.attention,
    )
    return ModuleSpec(
        module=DiTLayer,
        params={"adaln_lora_dim": shape.adaln_lora_dim},
        submodules=DiTLayerSubmodules(
            full_self_attention=ModuleSpec(module=SelfAttention, submodules=self_attention),
            cross_attention=ModuleSpec(
                module=CrossAttention, params={"text_dim": shape.text_dim}, submodules=cross_attention
            ),
            mlp=ModuleSpec(
                module=tokens.mlp,
                submodules=MLPSubmodules(linear_fc1=tokens.column_linear, linear_fc2=tokens.row_linear),
            ),
        ),
    )


def transformer_config(
    shape: DiTShape, *, backend: Backend, pg_collection: ProcessGroupCollection, dtype: torch.dtype
) -> TransformerConfig:
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_hidden_size,
        activation_func=F.gelu,
        add_bias_linear=False,
        bias_activation_fusion=False,
        normalization="RMSNorm",
        layernorm_epsilon=NORM_EPSILON,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=pg_collection.tp.size(),
        context_parallel_size=pg_collection.cp.size(),
        perform_initialization=False,
        **backend.meta_config,
    )
