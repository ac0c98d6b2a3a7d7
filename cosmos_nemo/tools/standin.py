"""`cosmos-nemo standin`: random weights of nano size in a card's released layout, to try commands with."""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from cosmos_nemo.catalog import CARDS, CatalogError, ModelCard, find_card, overrides_of
from cosmos_nemo.checkpoint.locate import HubFiles, text_encoder_of, tokenizer_of, weights_of

_NANO_WIDTH = 512
"""Networks up to this width are written as they are."""

_MARKER = "standin.json"
_LAYOUT_USE = {"folder": "--cosmos_assets_dir {folder}", "hub": "HF_HOME={folder} HF_HUB_OFFLINE=1"}


class StandinError(ValueError):
    """A folder in which no stand-in can be written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `cosmos-nemo standin`."""
    parser.add_argument("card", metavar="CARD", help=f"one of {', '.join(CARDS)}")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write: a new or an empty folder")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    parser.add_argument(
        "--layout",
        choices=tuple(_LAYOUT_USE),
        default="folder",
        help="folder: DIR serves as --cosmos_assets_dir (default); hub: DIR serves as HF_HOME",
    )


def run(args: argparse.Namespace) -> int:
    """0: written, or already there; 2: unknown card, or a folder that holds something else."""
    try:
        is_new = write_standin(find_card(args.card), args.folder, seed=args.seed, layout=args.layout)
    except (CatalogError, StandinError) as error:
        print(f"cosmos-nemo standin: {error}", file=sys.stderr)
        return 2
    state, use = "written" if is_new else "is there", _LAYOUT_USE[args.layout].format(folder=args.folder)
    print(f"{args.folder}: {args.card} with random weights {state}. Use it with {use}")
    return 0


def standin_card(card: ModelCard) -> ModelCard:
    """`card` at about 1/1000 of its parameters; what it accepts (sizes, frames, text length) stays the same.

    Layers, heads and widths shrink by fixed factors, so that models of different size still differ.
    """
    network = card.network
    if network.hidden_size <= _NANO_WIDTH:
        return card
    heads, head_dim = network.num_heads // 4, 32
    small = replace(
        network,
        num_layers=network.num_layers // 7,
        hidden_size=heads * head_dim,
        num_heads=heads,
        ffn_hidden_size=4 * heads * head_dim,
        adaln_lora_dim=network.adaln_lora_dim // 8,
        text_dim=network.text_dim // 16,
    )
    return replace(card, network=small, tokenizer=replace(card.tokenizer, channels=16))


def write_standin(card: ModelCard, folder: Path, *, seed: int, layout: str) -> bool:
    """Writes the stand-in; False if exactly this one is in `folder` already.

    The weights' folder holds a card.json with the sizes that differ. The folder appears whole or not at all.
    StandinError if it holds anything else, or cannot be written.
    """
    small = standin_card(card)
    marker = _marker(small, seed=seed, layout=layout)
    if _is_there(folder, marker):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
            root = Path(partial) / "whole"
            root.mkdir()
            _write_parts(small, card, root, seed=seed, layout=layout)
            (root / _MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
            os.replace(root, folder)
    except OSError as error:
        raise StandinError(f"{folder} cannot be written: {error}") from error
    return True


def _write_parts(small: ModelCard, card: ModelCard, root: Path, *, seed: int, layout: str) -> None:
    from cosmos_nemo.checkpoint.reader import LazyTensor
    from cosmos_nemo.checkpoint.writer import write_torch_dist, write_zarr
    from cosmos_nemo.tools.standin_network import random_network
    from cosmos_nemo.tools.standin_text import write_text_encoder
    from cosmos_nemo.tools.standin_tokenizer import write_released_tokenizer

    place = functools.partial(_place, root=root, seed=seed, layout=layout)
    weights, tokenizer, text = weights_of(small), tokenizer_of(small), text_encoder_of(small)
    tensors = random_network(small.network, seed=seed)
    write_network = write_zarr if weights.is_released else write_torch_dist
    write_network(
        place(weights) / weights.subfolder,
        {name: LazyTensor.of(tensor) for name, tensor in tensors.items()},
        shape=small.network,
        card_overrides=overrides_of(small, card),
    )
    write_released_tokenizer(
        small.tokenizer, place(tokenizer), seed=seed, layout="jit" if tokenizer.is_released else "safetensors"
    )
    write_text_encoder(place(text), text_dim=small.network.text_dim, seed=seed)


def _place(files: HubFiles, *, root: Path, seed: int, layout: str) -> Path:
    """The repository's folder in an assets folder, or its one snapshot in a Hugging Face cache."""
    if layout == "folder":
        return root / files.assets_name
    repository = root / "hub" / files.hub_name
    commit = hashlib.sha1(f"stand-in {files.repository} {seed}".encode()).hexdigest()
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def _marker(small: ModelCard, *, seed: int, layout: str) -> dict[str, Any]:
    sizes = {part: dataclasses.asdict(getattr(small, part)) for part in ("network", "tokenizer")}
    return json.loads(json.dumps({"standin": small.name, "seed": seed, "layout": layout, **sizes}))


def _is_there(folder: Path, marker: dict[str, Any]) -> bool:
    """False: the folder is free; StandinError if anything but this very stand-in is in it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StandinError(f"{folder} is not empty and holds no stand-in: choose a new folder.") from None
    if found != marker:
        held = f"{found.get('standin')} (seed {found.get('seed')}, layout {found.get('layout')})"
        raise StandinError(
            f"{folder} holds another stand-in, {held}, perhaps with sizes of an older version: "
            "choose a new folder or remove it."
        )
    return True
