"""`cosmos-nemo standin`: random weights of nano size in a card's released layout, to try commands with."""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from cosmos_nemo.catalog import (
    CARDS,
    CatalogError,
    Family,
    ModelCard,
    Task,
    TokenModel,
    WanTokenizerShape,
    find_card,
    overrides_of,
)
from cosmos_nemo.checkpoint.locate import (
    HubFiles,
    diffusion_decoder_of,
    discrete_tokenizer_of,
    guardrail_of,
    text_encoder_of,
    text_guard_of,
    tokenizer_of,
    upsampler_of,
    weights_of,
)

_NANO_WIDTH = 512
"""Networks up to this width are written as they are."""

_TOKENIZER_CHANNELS = 16
_SMALL_TOKENS = (4, 6)
"""Rows and columns of an autoregressive stand-in's tokens."""
_SMALL_LEVELS = (8, 5, 5)
"""Of its codes: drawing from 64,000 tokens would take most of its time."""
_MARKER = "standin.json"
_LAYOUTS = ("folder", "hub")


class StandinError(ValueError):
    """A folder in which no stand-in can be written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `cosmos-nemo standin`."""
    parser.add_argument(
        "cards",
        metavar="CARD",
        nargs="+",
        help=f"one or more of {', '.join(CARDS)}; they share what they can",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write: a new or an empty folder")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    parser.add_argument(
        "--layout",
        choices=_LAYOUTS,
        default="folder",
        help="folder: DIR serves as --cosmos_assets_dir or --checkpoint_dir (default); hub: as HF_HOME",
    )


def run(args: argparse.Namespace) -> int:
    """0: written, or already there; 2: unknown card, or a folder that holds something else."""
    try:
        cards = [find_card(name) for name in args.cards]
        is_new = write_standin(cards, args.folder, seed=args.seed, layout=args.layout)
    except (CatalogError, StandinError) as error:
        print(f"cosmos-nemo standin: {error}", file=sys.stderr)
        return 2
    use = f"HF_HOME={args.folder} HF_HUB_OFFLINE=1"
    if args.layout == "folder":
        use = " or ".join(dict.fromkeys(_door(card, args.folder) for card in cards))
    state = "written" if is_new else "is there"
    print(f"{args.folder}: {', '.join(args.cards)} with random weights {state}. Use it with {use}")
    return 0


def _door(card: ModelCard, folder: Path) -> str:
    """The scripts that run the model from the folder."""
    script = "base" if card.task is Task.AUTOREGRESSIVE else card.task.value
    own = f"{script}.py --checkpoint_dir {folder}"
    has_general = card.task in (Task.TEXT2WORLD, Task.VIDEO2WORLD)
    return f"general.py --cosmos_assets_dir {folder} or {own}" if has_general else own


def standin_card(card: ModelCard) -> ModelCard:
    """`card` at about 1/1000 of its parameters; what it accepts (sizes, frames, text length) stays the same.

    Layers, heads and widths shrink by fixed factors, so that models of different size still differ.
    """
    network = card.network
    width = network.hidden_size if card.tokens is None else card.tokens.network.hidden_size
    if width <= _NANO_WIDTH:
        return card
    if card.tokens is not None:
        return _small_tokens(card, card.tokens)
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
    return replace(card, network=small, tokenizer=replace(card.tokenizer, channels=_TOKENIZER_CHANNELS))


def _small_tokens(card: ModelCard, tokens: TokenModel) -> ModelCard:
    """An autoregressive model that makes smaller videos, too: it takes no flags for their size."""
    from cosmos_nemo.tools.standin_diffusion_decoder import nano_decoder

    latent_THW, shape = (tokens.network.latent_THW[0], *_SMALL_TOKENS), tokens.network
    side = tokens.tokenizer.spatial_compression
    small = replace(
        tokens,
        network=replace(
            shape,
            num_layers=shape.num_layers // 7,
            hidden_size=shape.hidden_size // 32,
            num_heads=shape.num_heads // 2,
            head_dim=shape.head_dim // 16,
            ffn_hidden_size=shape.ffn_hidden_size // 32,
            latent_THW=latent_THW,
            vocab_size=prod(_SMALL_LEVELS),
        ),
        tokenizer=replace(tokens.tokenizer, channels=_TOKENIZER_CHANNELS, levels=_SMALL_LEVELS),
    )
    return replace(
        card,
        tokens=small,
        network=replace(nano_decoder(card.network), token_vocab=prod(_SMALL_LEVELS)),
        tokenizer=replace(card.tokenizer, channels=_TOKENIZER_CHANNELS),
        video=replace(card.video, height=latent_THW[1] * side, width=latent_THW[2] * side),
    )


def write_standin(cards: Sequence[ModelCard], folder: Path, *, seed: int, layout: str) -> bool:
    """Writes stand-ins of all models of the cards; False if exactly these are in `folder` already.

    Each network's folder holds a card.json with the sizes that differ. The folder appears whole or not at
    all. StandinError if it holds anything else, or cannot be written.
    """
    marker = _marker(cards, seed=seed, layout=layout)
    if _is_there(folder, marker):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
            root = Path(partial) / "whole"
            root.mkdir()
            for card in cards:
                _write_parts(card, root, seed=seed, layout=layout)
            (root / _MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
            os.replace(root, folder)
    except OSError as error:
        raise StandinError(f"{folder} cannot be written: {error}") from error
    return True


def _write_parts(card: ModelCard, root: Path, *, seed: int, layout: str) -> None:
    """All models of one card, but for those that an earlier card brought."""
    from cosmos_nemo.stages.guardrail import WORD_LISTS
    from cosmos_nemo.tools.standin_diffusion_decoder import write_diffusion_decoder
    from cosmos_nemo.tools.standin_discrete_tokenizer import write_released_discrete_tokenizer
    from cosmos_nemo.tools.standin_pixtral import write_pixtral
    from cosmos_nemo.tools.standin_refiner import write_refiner
    from cosmos_nemo.tools.standin_text import write_text_encoder
    from cosmos_nemo.tools.standin_text_guard import write_llama_guard, write_word_lists
    from cosmos_nemo.tools.standin_tokenizer import write_released_tokenizer
    from cosmos_nemo.tools.standin_upsampler import write_upsampler
    from cosmos_nemo.tools.standin_video_guard import write_video_guard
    from cosmos_nemo.tools.standin_wan_tokenizer import write_released_wan_tokenizer

    small = standin_card(card)

    def write_guardrails(folder: Path, *, seed: int) -> None:
        write_word_lists(folder / WORD_LISTS)
        write_video_guard(folder, seed=seed)

    write_tokenizer: Callable[..., object]
    if isinstance(small.tokenizer, WanTokenizerShape):
        write_tokenizer = functools.partial(write_released_wan_tokenizer, small.tokenizer)
    else:
        layout_of_it: Literal["jit", "safetensors"] = (
            "jit" if tokenizer_of(card).is_released else "safetensors"
        )
        write_tokenizer = functools.partial(write_released_tokenizer, small.tokenizer, layout=layout_of_it)
    parts: list[tuple[HubFiles, Callable[..., object]]] = [
        (weights_of(card), functools.partial(_write_network, small, card)),
    ]
    if card.sources.tokenizer:
        parts.append((tokenizer_of(card), write_tokenizer))
    if small.tokens is not None:
        write_discrete = functools.partial(write_released_discrete_tokenizer, small.tokens.tokenizer)
        parts.append((discrete_tokenizer_of(card), write_discrete))
    if card.has_diffusion_decoder:
        write_decoder = functools.partial(write_diffusion_decoder, small.network)
        parts.append((diffusion_decoder_of(card), write_decoder))
    if card.sources.text_encoder:
        write_t5 = functools.partial(write_text_encoder, text_dim=small.network.text_dim)
        parts.append((text_encoder_of(card), write_t5))
    if card.sources.upsampler and card.network.family is Family.PREDICT2:
        parts.append((upsampler_of(card), write_refiner))
    elif card.sources.upsampler and card.task is Task.TEXT2WORLD:
        parts.append((upsampler_of(card), write_upsampler))
    elif card.sources.upsampler:
        # As the download leaves it: Mistral's file, and the tokenizer of another repository beside it.
        parts.append((upsampler_of(card), functools.partial(write_pixtral, layout="mistral")))
    if card.sources.guardrail:
        parts.append((guardrail_of(card), write_guardrails))
    if card.sources.text_guard:
        parts.append((text_guard_of(card), write_llama_guard))
    network = _place(weights_of(card), root=root, seed=seed, layout=layout)
    is_first = not network.exists()
    for files, write in parts:
        folder = _place(files, root=root, seed=seed, layout=layout)
        if not folder.exists():
            write(folder=folder, seed=seed)
    if card.sources.weights_files:
        _name_network(network, card.sources.weights_files[0], is_first=is_first)


def _write_network(small: ModelCard, card: ModelCard, *, folder: Path, seed: int) -> None:
    """As NVIDIA released it (model.pt or zarr), or, of a model of our own, as torch_dist."""
    from cosmos_nemo.checkpoint.reader import LazyTensor
    from cosmos_nemo.checkpoint.writer import write_model_pt, write_torch_dist, write_zarr
    from cosmos_nemo.tools.standin_network import random_network

    inner = card.sources.weights_folder
    if small.tokens is not None:
        from cosmos_nemo.tools.standin_tokens import write_token_transformer

        differs = overrides_of(small, card)
        write_token_transformer(small.tokens.network, folder, inner=inner, seed=seed, card_overrides=differs)
        return
    write = write_model_pt if not inner else write_zarr if weights_of(card).is_released else write_torch_dist
    write(
        folder / inner,
        {name: LazyTensor.of(tensor) for name, tensor in random_network(small.network, seed=seed).items()},
        shape=small.network,
        card_overrides=overrides_of(small, card),
    )


def _name_network(folder: Path, name: str, *, is_first: bool) -> None:
    """A repository with several networks has files of their names, here all with the same numbers."""
    if not (folder / name).exists():
        written = next(folder.glob("model*.pt"))
        if is_first:
            written.rename(folder / name)
        else:
            shutil.copy(written, folder / name)


def _place(files: HubFiles, *, root: Path, seed: int, layout: str) -> Path:
    """The repository's folder in an assets folder, or its one snapshot in a Hugging Face cache."""
    if layout == "folder":
        return root / files.assets_name
    repository = root / "hub" / files.hub_name
    commit = files.revision or hashlib.sha1(f"stand-in {files.repository} {seed}".encode()).hexdigest()
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def _marker(cards: Sequence[ModelCard], *, seed: int, layout: str) -> dict[str, Any]:
    sizes = {
        card.name: {
            part: dataclasses.asdict(getattr(standin_card(card), part))
            for part in ("network", "tokenizer", *(("tokens",) if card.tokens is not None else ()))
        }
        for card in cards
    }
    return json.loads(json.dumps({"standin": sizes, "seed": seed, "layout": layout}))


def _is_there(folder: Path, marker: dict[str, Any]) -> bool:
    """False: the folder is free; StandinError if anything but this very stand-in is in it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StandinError(f"{folder} is not empty and holds no stand-in: choose a new folder.") from None
    if found != marker:
        held = (
            f"{', '.join(found.get('standin', ()))} (seed {found.get('seed')}, layout {found.get('layout')})"
        )
        raise StandinError(
            f"{folder} holds another stand-in, {held}, perhaps with sizes of an older version: "
            "choose a new folder or remove it."
        )
    return True
