"""`cosmos-nemo inspect CKPT`: what a checkpoint is, without reading its weights."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_nemo.catalog import CatalogError, Family

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.reader import Checkpoint

_DIFFUSION_FAMILIES = {
    Family.COSMOS1: "diffusion transformer of Cosmos 1.0 and Predict1",
    Family.PREDICT2: "diffusion transformer of Predict2",
    Family.TOKEN_DECODER: "diffusion decoder of Predict1's autoregressive models",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="file or folder of any layout")
    parser.add_argument("--tensors", action="store_true", help="also list every tensor")


def run(args: argparse.Namespace) -> int:
    """0 if CKPT is a complete checkpoint, 2 if it is damaged, or none."""
    from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

    try:
        checkpoint = open_checkpoint(args.checkpoint)
        for label, value in _facts(checkpoint, args.checkpoint):
            print(f"{label:<12} {value}")
    except (CheckpointError, CatalogError) as error:
        print(f"cosmos-nemo inspect: {error}", file=sys.stderr)
        return 2
    if args.tensors:
        _print_tensors(checkpoint)
    return 0


def _facts(checkpoint: "Checkpoint", asked: Path) -> Iterator[tuple[str, str]]:
    """asked: the path that a person named, at which the doors look for card.json too."""
    from cosmos_nemo.checkpoint.fingerprint import fingerprint

    names = checkpoint.names()
    counts = {name: prod(checkpoint.shape(name)) for name in names}
    dtypes = Counter(str(checkpoint.dtype(name)).removeprefix("torch.") for name in names)
    size = sum(count * checkpoint.dtype(name).itemsize for name, count in counts.items())
    yield "path", str(checkpoint.path)
    yield "layout", checkpoint.layout
    yield from _network_facts(checkpoint, asked)
    yield "tensors", f"{len(names):,}"
    yield "numbers", f"{sum(counts.values()):,}"
    yield "dtypes", ", ".join(f"{dtype} ({count})" for dtype, count in dtypes.most_common())
    yield "size", f"{size:,} bytes ({size / 2**30:.2f} GiB)"
    yield "fingerprint", fingerprint(checkpoint.path)


def _network_facts(checkpoint: "Checkpoint", asked: Path) -> Iterator[tuple[str, str]]:
    """Family, format, sizes and model, where the checkpoint is a transformer of Cosmos; complete or not, it
    says which."""
    from cosmos_nemo.checkpoint.formats import detect_format
    from cosmos_nemo.checkpoint.reader import CheckpointError
    from cosmos_nemo.checkpoint.token_identity import holds_token_transformer

    if holds_token_transformer(checkpoint):
        yield from _token_facts(checkpoint, asked)
        return
    try:
        detect_format(checkpoint)
    except CheckpointError:
        yield "format", "no transformer of Cosmos, neither diffusion nor autoregressive"
        return
    yield from _diffusion_facts(checkpoint, asked)


def _diffusion_facts(checkpoint: "Checkpoint", asked: Path) -> Iterator[tuple[str, str]]:
    from cosmos_nemo.checkpoint.card_file import read_card_file
    from cosmos_nemo.checkpoint.formats import detect_format
    from cosmos_nemo.checkpoint.identity import identify
    from cosmos_nemo.checkpoint.lora import merge_lora
    from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
    from cosmos_nemo.checkpoint.network import choose_weights, holds

    yield "format", detect_format(checkpoint)[0].name
    has_weights, has_average = holds(checkpoint)
    if has_average:
        yield "average", "the weights and their moving average" if has_weights else "it alone, for --load_ema"
    chosen = choose_weights(checkpoint, averaged=has_average and not has_weights)
    merged = merge_lora(chosen)
    if merged is not chosen:
        yield "post-trained", "with LoRA, which is merged when the network is read"
    stated = read_card_file(asked)
    identity = identify(merged, overrides=stated)
    shape = identity.card.network
    network_rules(shape, merged)
    yield "family", _DIFFUSION_FAMILIES[shape.family]
    nearest = "nearest to " if identity.overrides else ""
    yield "model", nearest + " or ".join((identity.name, *identity.others))
    yield "layers", f"{shape.num_layers}, width {shape.hidden_size}, {shape.num_heads} heads"
    if shape.family is Family.TOKEN_DECODER:
        yield "vocabulary", f"{shape.token_vocab:,} tokens, {shape.token_dim} channels each"
    yield "parameters", f"{sum(map(prod, parameter_shapes(shape).values())):,}"
    if identity.overrides:
        yield "differs in", json.dumps(identity.overrides)
    if stated:
        yield "card.json", json.dumps(stated)


def _token_facts(checkpoint: "Checkpoint", asked: Path) -> Iterator[tuple[str, str]]:
    from cosmos_nemo.checkpoint.card_file import read_card_file
    from cosmos_nemo.checkpoint.token_formats import TokenFormat, detect_token_format, token_parameter_shapes
    from cosmos_nemo.checkpoint.token_identity import identify_tokens, models_of_the_same_sizes
    from cosmos_nemo.checkpoint.token_names import token_rules

    stored = detect_token_format(checkpoint)
    yield "format", "nemo" if stored.format_ is TokenFormat.NEMO else "predict1"
    stated = read_card_file(asked)
    identity = identify_tokens(checkpoint, overrides=stated)
    assert identity.card.tokens is not None
    shape = identity.card.tokens.network
    token_rules(shape, checkpoint)
    yield "family", "autoregressive transformer of video tokens"
    nearest = "" if models_of_the_same_sizes(identity) else "nearest to "
    yield "model", nearest + " or ".join((identity.name, *identity.others))
    heads = f"{shape.num_heads} heads of {shape.head_dim}, {shape.num_kv_heads} of keys and values"
    yield "layers", f"{shape.num_layers}, width {shape.hidden_size} (MLP {shape.ffn_hidden_size}), {heads}"
    yield "vocabulary", f"{shape.vocab_size:,} tokens"
    yield "text", f"width {shape.text_dim}" if shape.takes_text else "none"
    told = stated.get("tokens", {}).get("network", {})
    frames, rows, columns = shape.latent_THW
    of_card = f"as of {identity.base.name}; no tensor tells"
    video = "as card.json says" if "latent_THW" in told else of_card
    yield "video", f"{frames} x {rows} x {columns} tokens, {video}"
    scale = "as card.json says" if "rope_scale" in told else of_card
    yield "angles", f"scale {shape.rope_scale:g}, {scale}"
    yield "parameters", f"{sum(map(prod, token_parameter_shapes(shape).values())):,}"
    if identity.overrides:
        yield "differs in", json.dumps(identity.overrides)
    if stated:
        yield "card.json", json.dumps(stated)


def _print_tensors(checkpoint: "Checkpoint") -> None:
    width = max(map(len, checkpoint.names()), default=0)
    for name in checkpoint.names():
        dtype = str(checkpoint.dtype(name)).removeprefix("torch.")
        print(f"{name:<{width}}  {dtype:<9} {list(checkpoint.shape(name))}")
