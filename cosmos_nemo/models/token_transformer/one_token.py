"""Reading one token of each video on a GPU, with what lies between matrix products in few kernels.

The same arithmetic as `TokenLayer.forward` (layers.py) and the cache's `write`, which serve the CPU, GPUs
without Triton and models that attend to text. Legend: B batch, D width.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.models.common.fused import has_triton, is_power_of_two
from cosmos_nemo.models.token_transformer.cache import KeyValueCache
from cosmos_nemo.models.token_transformer.layers import TokenLayer


def has_kernels(shape: TokenShape, device: torch.device) -> bool:
    """Whether `read_token` can run such a network there."""
    fits = shape.head_dim >= 16 and is_power_of_two(shape.head_dim) and not shape.takes_text
    return fits and device.type == "cuda" and has_triton()


def read_token(
    hidden_BD: Tensor,
    layers: Iterable[TokenLayer],
    final_norm: nn.Module,
    output: nn.Module,
    cache: KeyValueCache,
    *,
    position: Tensor,
    bucket: int,
    eps: float,
    ranks: int,
) -> Tensor:
    """The embedded token through all layers, the last norm and the output: this rank's logits [B, V].

    Writes keys and values at `position`, int64 without axes on the device, below `bucket`. `ranks` share the
    layers by tensor parallel. Waits for nothing, so that it can be recorded in a CUDA graph.
    """
    from cosmos_nemo.models.token_transformer import one_token_kernels as kernels

    cos_LK, sin_LK = cache.positions.cos.flatten(1), cache.positions.sin.flatten(1)
    delta: Tensor | None = None
    for index, layer in enumerate(layers):
        attention, mlp = cast(Any, layer.self_attention), cast(Any, layer.mlp)
        hidden_BD, normed = kernels.add_and_norm(hidden_BD, delta, _weight(layer.input_layernorm), eps)
        keys, values = cache.k[index], cache.v[index]
        queries = kernels.norm_rotate_and_store(
            _columns(attention.linear_qkv, normed),
            *(_weight(attention.q_layernorm), _weight(attention.k_layernorm)),
            *(cos_LK, sin_LK, position, keys, values),
            eps=eps,
        )
        attended = kernels.attend_to_places(queries, keys, values, position, bucket)
        delta = _rows(attention.linear_proj, attended.flatten(1), ranks)
        hidden_BD, normed = kernels.add_and_norm(hidden_BD, delta, _weight(layer.pre_mlp_layernorm), eps)
        delta = _rows(mlp.linear_fc2, _gated(mlp.linear_fc1, normed), ranks)
    return _columns(output, kernels.add_and_norm(hidden_BD, delta, _weight(final_norm), eps)[1])


def _columns(linear: nn.Module, x_BI: Tensor) -> Tensor:
    """Of a linear whose outputs are split over ranks. For one video cuBLAS is slower than our kernel."""
    if len(x_BI) > 1:
        return _by_module(linear, x_BI)
    from cosmos_nemo.models.token_transformer import one_token_kernels as kernels

    return kernels.multiply_vector(x_BI, _weight(linear))


def _rows(linear: nn.Module, x_BI: Tensor, ranks: int) -> Tensor:
    """Of a linear whose inputs are split over ranks, which it adds up."""
    return _columns(linear, x_BI) if ranks == 1 else _by_module(linear, x_BI)


def _gated(linear: nn.Module, x_BI: Tensor) -> Tensor:
    """The MLP's first linear, and its activation."""
    from cosmos_nemo.models.token_transformer import one_token_kernels as kernels

    if len(x_BI) == 1:
        return kernels.multiply_and_gate(x_BI, _weight(linear))
    return kernels.silu_and_multiply(_by_module(linear, x_BI))


def _by_module(linear: nn.Module, x_BI: Tensor) -> Tensor:
    """Megatron's or Transformer Engine's own way."""
    return cast(Tensor, linear(x_BI[None])[0][0])


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)
