"""A small autoregressive transformer of video tokens with a real cache, in place of the released ones."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cosmos_nemo.catalog import TokenShape

TINY_TOKENS = TokenShape(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=64,
    vocab_size=60,
    latent_THW=(4, 3, 5),
)


@dataclass
class FakeCache:
    """Keys and values of each layer, and the buckets of the steps that went through them."""

    keys_values: list[tuple[Tensor, Tensor]]
    buckets: list[int] = field(default_factory=list)


class FakeTokenNetwork(nn.Module):
    """Attention over learned positions. Text is the vector that `encode_text` adds to every token."""

    def __init__(
        self,
        shape: TokenShape = TINY_TOKENS,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.shape = shape
        width, heads = shape.hidden_size, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        self.embedding = nn.Embedding(shape.embedding_rows, width)
        self.places = nn.Embedding(shape.max_length, width)
        self.to_heads = nn.ModuleList(nn.Linear(width, heads) for _ in range(shape.num_layers))
        self.mix = nn.ModuleList(
            nn.Linear(shape.num_heads * shape.head_dim, width) for _ in range(shape.num_layers)
        )
        self.output = nn.Linear(width, shape.vocab_size)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(
                4 if parameter is self.embedding.weight else parameter.shape[-1] / 4
            )
        self.output.weight.data *= 3
        self.to(device=device, dtype=dtype).requires_grad_(False).eval()
        self.caches: list[FakeCache] = []

    def encode_text(self, text_BLD: Tensor) -> Tensor:
        return text_BLD.mean(dim=(1, 2), keepdim=True)

    def new_cache(self, batch_size: int) -> FakeCache:
        weight, shape = self.output.weight, self.shape
        size = (batch_size, shape.num_kv_heads, shape.max_length, shape.head_dim)
        self.caches.append(
            FakeCache([(weight.new_zeros(size), weight.new_zeros(size)) for _ in range(shape.num_layers)])
        )
        return self.caches[-1]

    def forward(self, tokens_BS: Tensor, *, text: Any = None) -> Tensor:
        """Logits [B, S, V], without a cache."""
        positions_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        hidden_BSD = self._embedded(tokens_BS, positions_S, text)
        for layer in range(self.shape.num_layers):
            query, key, value = self._heads(layer, hidden_BSD)
            mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            hidden_BSD = hidden_BSD + self.mix[layer](mixed.transpose(1, 2).flatten(2))
        return self.output(hidden_BSD)

    def prefill(self, tokens_BS: Tensor, cache: FakeCache, *, text: Any = None) -> Tensor:
        positions_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        return self._through_cache(tokens_BS, cache, positions_S, tokens_BS.shape[1], text)

    def decode(
        self, tokens_B1: Tensor, cache: FakeCache, *, position: Tensor, bucket: int, text: Any = None
    ) -> Tensor:
        assert tokens_B1.shape[1] == 1 and position.shape == () and position.dtype == torch.int64
        cache.buckets.append(bucket)
        return self._through_cache(tokens_B1, cache, position.reshape(1), bucket, text)

    def _through_cache(
        self, tokens_BS: Tensor, cache: FakeCache, positions_S: Tensor, bucket: int, text: Any
    ) -> Tensor:
        seen_SK = torch.arange(bucket, device=tokens_BS.device) <= positions_S[:, None]
        hidden_BSD = self._embedded(tokens_BS, positions_S, text)
        for layer, (keys, values) in enumerate(cache.keys_values):
            query, key, value = self._heads(layer, hidden_BSD)
            keys.index_copy_(2, positions_S, key)
            values.index_copy_(2, positions_S, value)
            mixed = scaled_dot_product_attention(
                query, keys[:, :, :bucket], values[:, :, :bucket], attn_mask=seen_SK, enable_gqa=True
            )
            hidden_BSD = hidden_BSD + self.mix[layer](mixed.transpose(1, 2).flatten(2))
        return self.output(hidden_BSD[:, -1])

    def _embedded(self, tokens_BS: Tensor, positions_S: Tensor, text: Any) -> Tensor:
        hidden_BSD = self.embedding(tokens_BS) + self.places(positions_S)
        return hidden_BSD if text is None else hidden_BSD + text

    def _heads(self, layer: int, hidden_BSD: Tensor) -> tuple[Tensor, ...]:
        shape = self.shape
        heads_BSND = self.to_heads[layer](hidden_BSD.tanh()).unflatten(-1, (-1, shape.head_dim))
        heads_BNSD = heads_BSND.transpose(1, 2)
        return heads_BNSD.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
