"""`cosmos-nemo inspect CKPT`: what a checkpoint is, without reading its weights."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_nemo.catalog import CatalogError

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.reader import Checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="file or folder of any layout")
    parser.add_argument("--tensors", action="store_true", help="also list every tensor")


def run(args: argparse.Namespace) -> int:
    """0 if CKPT is a complete checkpoint, 2 if it is damaged, or none."""
    from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

    try:
        checkpoint = open_checkpoint(args.checkpoint)
        for label, value in _facts(checkpoint):
            print(f"{label:<12} {value}")
    except (CheckpointError, CatalogError) as error:
        print(f"cosmos-nemo inspect: {error}", file=sys.stderr)
        return 2
    if args.tensors:
        _print_tensors(checkpoint)
    return 0


def _facts(checkpoint: "Checkpoint") -> Iterator[tuple[str, str]]:
    from cosmos_nemo.checkpoint.fingerprint import fingerprint

    names = checkpoint.names()
    counts = {name: prod(checkpoint.shape(name)) for name in names}
    dtypes = Counter(str(checkpoint.dtype(name)).removeprefix("torch.") for name in names)
    size = sum(count * checkpoint.dtype(name).itemsize for name, count in counts.items())
    yield "path", str(checkpoint.path)
    yield "layout", checkpoint.layout
    yield from _network_facts(checkpoint)
    yield "tensors", f"{len(names):,}"
    yield "numbers", f"{sum(counts.values()):,}"
    yield "dtypes", ", ".join(f"{dtype} ({count})" for dtype, count in dtypes.most_common())
    yield "size", f"{size:,} bytes ({size / 2**30:.2f} GiB)"
    yield "fingerprint", fingerprint(checkpoint.path)


def _network_facts(checkpoint: "Checkpoint") -> Iterator[tuple[str, str]]:
    """Format and model, where the checkpoint is a diffusion transformer's; complete or not, it says which."""
    from cosmos_nemo.checkpoint.card_file import read_card_file
    from cosmos_nemo.checkpoint.formats import detect_format
    from cosmos_nemo.checkpoint.identity import identify
    from cosmos_nemo.checkpoint.lora import merge_lora
    from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
    from cosmos_nemo.checkpoint.network import choose_weights, holds
    from cosmos_nemo.checkpoint.reader import CheckpointError

    try:
        format_, _ = detect_format(checkpoint)
    except CheckpointError:
        yield "format", "no diffusion transformer of Cosmos"
        return
    yield "format", format_.name
    has_weights, has_average = holds(checkpoint)
    if has_average:
        yield "average", "the weights and their moving average" if has_weights else "it alone, for --load_ema"
    chosen = choose_weights(checkpoint, averaged=has_average and not has_weights)
    merged = merge_lora(chosen)
    if merged is not chosen:
        yield "post-trained", "with LoRA, which is merged when the network is read"
    identity = identify(merged)
    network_rules(identity.card.network, merged)
    differs = "nearest to " if identity.overrides else ""
    yield "model", f"{differs}{identity.base.name}"
    yield "parameters", f"{sum(map(prod, parameter_shapes(identity.card.network).values())):,}"
    if identity.overrides:
        yield "differs in", json.dumps(identity.overrides)
    if stated := read_card_file(checkpoint.path):
        yield "card.json", json.dumps(stated)


def _print_tensors(checkpoint: "Checkpoint") -> None:
    width = max(map(len, checkpoint.names()), default=0)
    for name in checkpoint.names():
        dtype = str(checkpoint.dtype(name)).removeprefix("torch.")
        print(f"{name:<{width}}  {dtype:<9} {list(checkpoint.shape(name))}")
