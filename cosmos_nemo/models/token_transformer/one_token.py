"""Reading one token of each video on a GPU, with what lies between matrix products in few kernels.

The same arithmetic as `TokenLayer.forward` (layers.py) and the cache's `write`, which serve the CPU, GPUs
without Triton and models that attend to text. Legend: B batch, D width.
"""

import importlib.util
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.models.token_transformer.cache import KeyValueCache
from cosmos_nemo.models.token_transformer.layers import TokenLayer

VECTOR = False


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def has_kernels(shape: TokenShape, device: torch.device) -> bool:
    """Whether `read_token` can run such a network there."""
    width = shape.head_dim
    is_power_of_two = width >= 16 and width & (width - 1) == 0
    return device.type == "cuda" and is_power_of_two and not shape.takes_text and _has_triton()


def read_token(
    hidden_BD: Tensor,
    layers: Iterable[TokenLayer],
    final_norm: nn.Module,
    cache: KeyValueCache,
    *,
    position: Tensor,
    bucket: int,
    eps: float,
) -> Tensor:
    """The embedded token through all layers and the last norm, [B, D]; writes keys and values at `position`.

    `position` is int64 without axes on the device, below `bucket`. Waits for nothing, so that it can be
    recorded in a CUDA graph.
    """
    from cosmos_nemo.models.token_transformer import one_token_kernels as kernels

    cos_LK, sin_LK = cache.positions.cos.flatten(1), cache.positions.sin.flatten(1)
    delta: Tensor | None = None
    for index, layer in enumerate(layers):
        attention = cast(Any, layer.self_attention)
        hidden_BD, normed = kernels.add_and_norm(hidden_BD, delta, _weight(layer.input_layernorm), eps)
        keys, values = cache.k[index], cache.v[index]
        queries = kernels.norm_rotate_and_store(
            _product(attention.linear_qkv, normed),
            *(_weight(attention.q_layernorm), _weight(attention.k_layernorm)),
            *(cos_LK, sin_LK, position, keys, values),
            eps=eps,
        )
        attended = kernels.attend_to_places(queries, keys, values, position, bucket)
        delta = _product(attention.linear_proj, attended.flatten(1))
        hidden_BD, normed = kernels.add_and_norm(hidden_BD, delta, _weight(layer.pre_mlp_layernorm), eps)
        mlp = cast(Any, layer.mlp)
        delta = _product(mlp.linear_fc2, kernels.silu_and_multiply(_product(mlp.linear_fc1, normed)))
    return kernels.add_and_norm(hidden_BD, delta, _weight(final_norm), eps)[1]


def _weight(norm: nn.Module) -> Tensor:
    return cast(Tensor, norm.weight)


def _product(linear: nn.Module, x_BI: Tensor) -> Tensor:
    """Through Megatron's module, or Transformer Engine's: what is split over ranks is added up there."""
    if VECTOR and len(x_BI) == 1:
        from cosmos_nemo.models.token_transformer import one_token_kernels as kernels

        return kernels.multiply_vector(x_BI, linear.weight)
    return cast(Tensor, linear(x_BI[None])[0][0])
