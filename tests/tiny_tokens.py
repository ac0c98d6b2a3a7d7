"""Tiny autoregressive transformers with random weights, none of them zero or small enough to hide a fault."""

from dataclasses import replace

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.token_formats import token_parameter_shapes
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.cache import KeyValueCache
from cosmos_nemo.models.token_transformer.model import Text, TokenTransformer, build_token_transformer
from cosmos_nemo.parallel.groups import start_alone
from tests.fakes import CPU

BASE = TokenShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_hidden_size=96,
    vocab_size=128,
    latent_THW=(3, 2, 4),
)
SCALED = replace(BASE, hidden_size=72, head_dim=20, rope_scale=2.0, rope_original_THW=(3, 2, 4))
TEXT = replace(BASE, text_dim=24, text_length=5)
ALL = {"base": BASE, "scaled": SCALED, "text": TEXT}


def random_weights(shape: TokenShape, *, seed: int = 0) -> dict[str, Tensor]:
    """Our parameter name -> the whole tensor, float32."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, size in token_parameter_shapes(shape).items():
        values = torch.randn(size, generator=generator)
        weights[name] = 1 + values / 4 if len(size) == 1 else values * size[-1] ** -0.5
    return weights


def tiny_transformer(
    shape: TokenShape, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> TokenTransformer:
    """On one rank."""
    network = build_token_transformer(
        shape, backend=torch_backend(), pg_collection=start_alone(CPU).collection, device=CPU, dtype=dtype
    )
    for name, value in random_weights(shape, seed=seed).items():
        network.get_parameter(name).copy_(value)
    return network


def random_tokens(shape: TokenShape, *, batch: int = 1, seed: int = 1) -> Tensor:
    """A whole video, [B, S], with the token that begins it where the model has one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(shape.vocab_size, (batch, shape.num_video_tokens), generator=generator)
    begin = torch.full((batch, 1), shape.vocab_size)
    return torch.cat([begin, tokens], dim=1) if shape.takes_text else tokens


def random_text(network: TokenTransformer, *, batch: int = 1, seed: int = 2) -> Text | None:
    shape = network.shape
    if not shape.takes_text:
        return None
    generator = torch.Generator().manual_seed(seed)
    return network.encode_text(torch.randn(batch, shape.text_length, shape.text_dim, generator=generator))


def decode_all(
    network: TokenTransformer,
    tokens_BS: Tensor,
    *,
    prompt: int,
    text: Text | None = None,
    bucket: int | None = None,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """Logits of what follows the tokens prompt - 1, prompt, ..., [B, S - prompt + 1, V], token by token."""
    if cache is None:
        cache = network.new_cache(len(tokens_BS))
    logits = [network.prefill(tokens_BS[:, :prompt], cache, text=text)]
    position = torch.tensor(prompt)
    for token_B1 in tokens_BS[:, prompt:].split(1, dim=1):
        logits.append(
            network.decode(token_B1, cache, position=position, bucket=bucket or cache.max_length, text=text)
        )
        position += 1
    return torch.stack(logits, dim=1)
