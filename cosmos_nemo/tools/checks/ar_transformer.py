"""The autoregressive transformer: a video read at once, and token by token, and what it passes through."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.models.common.backend import te_backend, torch_backend
from cosmos_nemo.models.token_transformer.cache import bucket_for
from cosmos_nemo.models.token_transformer.model import Text, TokenTransformer, build_token_transformer
from cosmos_nemo.models.token_transformer.positions import (
    absolute_embedding,
    inverse_frequencies,
    rotary_angles,
)
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors
from cosmos_nemo.tools.checks.predict1_dit import inside

_MEGATRON = "outputs.mcore."
# What the network is built with whatever the sizes; a reference made otherwise is none of this network.
_FIXED = {
    "norm_type": "rmsnorm",
    "use_qk_normalization": True,
    "rope_dim": "3D",
    "pytorch_rope_version": "v2",
    "insert_cross_attn_every_k_layers": 1,
}


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Every output of the reference file: tables, weights, then the network itself."""
    shape = shape_of(case, tensors)
    yield from _tables(shape, tensors)
    network = _network(shape, tensors, options)
    for name in tensors:
        if name.startswith(_MEGATRON):
            yield name.removeprefix("outputs."), network.get_parameter(name.removeprefix(_MEGATRON)).data
    tokens_BS = tensors["inputs.tokens"].to(options.device)
    text = network.encode_text(tensors["inputs.context"]) if shape.takes_text else None
    hidden_BSD, logits_BSV = _read_at_once(network, tokens_BS, text)
    for layer, hidden in enumerate(hidden_BSD):
        if f"outputs.hidden_after_layer_{layer}" in tensors:
            yield f"hidden_after_layer_{layer}", hidden
    yield "logits", logits_BSV
    cache = network.new_cache(len(tokens_BS))
    network.prefill(tokens_BS, cache, text=text)
    for name, filled in (("k", cache.k), ("v", cache.v)):
        yield f"layer0_cache_{name}", rearrange(filled[0, : tokens_BS.shape[1]], "s b m k -> b m s k")
    if "outputs.greedy_tokens" in tensors and options.wants("greedy_tokens"):
        prompt_BS = tokens_BS[:, : case["prompt_len"]]
        yield "greedy_tokens", _greedy(network, prompt_BS, length=case["seq_len"], text=text)


def shape_of(case: Case, tensors: Tensors) -> TokenShape:
    """From the upstream class' arguments; ValueError for a network of another kind."""
    model = case["model"]
    other = {name: model[name] for name, value in _FIXED.items() if model.get(name, value) != value}
    takes_text = bool(model.get("insert_cross_attn"))
    if bool(model.get("apply_abs_pos_emb")) != takes_text:
        other["apply_abs_pos_emb"] = not takes_text
    if (case["training_type"] == "text_to_video") != takes_text:
        other["training_type"] = case["training_type"]
    if other:
        raise ValueError(f"the reference was made with {other}: such a network is not built")
    return TokenShape(
        num_layers=model["n_layers"],
        hidden_size=model["dim"],
        num_heads=model["n_heads"],
        num_kv_heads=model.get("n_kv_heads") or model["n_heads"],
        head_dim=model.get("head_dim") or model["dim"] // model["n_heads"],
        ffn_hidden_size=model["ffn_hidden_size"],
        vocab_size=model["vocab_size"],
        latent_THW=_three(model["video_latent_shape"]),
        norm_eps=model["norm_eps"],
        rope_theta=float(model["rope_theta"]),
        **(_scaling(model) if model.get("apply_yarn") else {}),
        text_dim=model["context_dim"] if takes_text else 0,
        text_length=tensors["inputs.context"].shape[1] if takes_text else 0,
    )


def _scaling(model: dict[str, Any]) -> dict[str, Any]:
    return {
        "rope_scale": float(model["yarn_scale"]),
        "rope_original_THW": _three(model["original_latent_shape"]),
        "rope_beta_fast": float(model["yarn_beta_fast"]),
        "rope_beta_slow": float(model["yarn_beta_slow"]),
    }


def _three(sizes: list[int]) -> tuple[int, int, int]:
    frames, rows, columns = sizes
    return frames, rows, columns


def _tables(shape: TokenShape, tensors: Tensors) -> Outputs:
    """Those that the file has, as long as it has them."""
    temporal, spatial = inverse_frequencies(shape)
    made: dict[str, Callable[[int], Tensor]] = {
        "rope_temporal_inv_freq": lambda _: temporal,
        "rope_spatial_inv_freq": lambda _: spatial,
        "rope_cos": lambda length: rotary_angles(shape, length).cos(),
        "rope_sin": lambda length: rotary_angles(shape, length).sin(),
        "abs_pos_emb": lambda length: absolute_embedding(shape, length).float()[None],
    }
    for name, make in made.items():
        if (wanted := tensors.get(f"outputs.{name}")) is not None:
            yield name, make(wanted.shape[-2] if wanted.ndim > 1 else 0)


def _network(shape: TokenShape, tensors: Tensors, options: Options) -> TokenTransformer:
    network = build_token_transformer(
        shape,
        backend=te_backend() if options.backend == "te" else torch_backend(),
        pg_collection=start_alone(options.device).collection,
        device=options.device,
        dtype=options.dtype,
    )
    checkpoint = open_checkpoint(options.weights) if options.weights else inside(tensors, options)
    load_into(network, checkpoint=checkpoint, rules=token_rules(shape, checkpoint))
    return network


def _read_at_once(
    network: TokenTransformer, tokens_BS: Tensor, text: Text | None
) -> tuple[list[Tensor], Tensor]:
    """The hidden state after each layer [B, S, D], and the logits, of one call of `forward`."""
    hidden_BSD: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, hidden_SBD: hidden_BSD.append(hidden_SBD.transpose(0, 1)))
        for layer in network.decoder
    ]
    logits = network(tokens_BS, text=text)
    for hook in hooks:
        hook.remove()
    return hidden_BSD, logits


def _greedy(network: TokenTransformer, prompt_BS: Tensor, *, length: int, text: Text | None) -> Tensor:
    """The prompt, and what follows it if always the likeliest token is taken, [B, length]."""
    cache = network.new_cache(len(prompt_BS))
    logits = network.prefill(prompt_BS, cache, text=text)
    tokens_BS = prompt_BS
    for position in range(prompt_BS.shape[1], length):
        next_B1 = logits.argmax(dim=-1, keepdim=True)
        tokens_BS = torch.cat([tokens_BS, next_B1], dim=1)
        logits = network.decode(
            next_B1,
            cache,
            position=torch.tensor(position, device=prompt_BS.device),
            bucket=bucket_for(position, max_length=cache.max_length),
            text=text,
        )
    return tokens_BS
