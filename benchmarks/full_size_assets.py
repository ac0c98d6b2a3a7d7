"""Random weights at a model's full size, as an assets folder: of general.py's models network, tokenizer and
T5-11B; of inference/base.py's token transformer, both tokenizers and diffusion decoder.

python benchmarks/full_size_assets.py DIR --model Cosmos-1.0-Diffusion-7B-Text2World
python benchmarks/full_size_assets.py DIR --model Cosmos-Predict2-2B-Video2World
python benchmarks/full_size_assets.py DIR --model Cosmos-Predict2-14B-Video2World --parts network
python benchmarks/full_size_assets.py DIR --model Cosmos-Predict1-4B
python benchmarks/full_size_assets.py DIR --model Cosmos-Predict1-12B

For measurements on machines that have no released weights. What is in DIR already stays, so that models share
what they have in common.

A NeMo torch_dist checkpoint written by this package, a tokenizer (Wan2.1's for Predict2), and a T5 encoder
with the stand-in's tokenizer. About 26 GB for the 7B, 15 GB for the 2B of Predict2, 30 GB for the network of
its 14B: in this layout the modulation matrices are stored with the zeros between their blocks. Tensors are
made one at a time.

Autoregressive models: 8 GB of the 4B's network, 23 GB of the 12B's, 14 GB of the decoder, which both use, and
1 GB of tokenizers. The two networks have the names of the released model.pt, in a safetensors file: a load
puts the same tensors together as it does from model.pt.
"""

import argparse
import json
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.random_weights import write_random_safetensors
from cosmos_nemo.catalog import CARDS, ModelCard, WanTokenizerShape, find_card
from cosmos_nemo.checkpoint.aux_vars import write_aux_vars
from cosmos_nemo.checkpoint.formats import RELEASED
from cosmos_nemo.checkpoint.locate import (
    diffusion_decoder_of,
    discrete_tokenizer_of,
    text_encoder_of,
    tokenizer_of,
    weights_of,
)
from cosmos_nemo.checkpoint.names import parameter_shapes, rules_for
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.released import HubFiles
from cosmos_nemo.checkpoint.token_formats import token_rules_for
from cosmos_nemo.checkpoint.writer import write_torch_dist
from cosmos_nemo.checkpoint.writer.new_path import new_path
from cosmos_nemo.checkpoint.writer.token_transformer import RELEASED as RELEASED_TOKENS
from cosmos_nemo.tools.standin_discrete_tokenizer import write_released_discrete_tokenizer
from cosmos_nemo.tools.standin_network import random_parameter
from cosmos_nemo.tools.standin_text import write_text_encoder
from cosmos_nemo.tools.standin_tokenizer import write_released_tokenizer
from cosmos_nemo.tools.standin_tokens import random_token_parameter
from cosmos_nemo.tools.standin_wan_tokenizer import write_released_wan_tokenizer

T5_11B = {
    "d_model": 1024,
    "d_kv": 128,
    "d_ff": 65536,
    "num_heads": 128,
    "num_layers": 24,
    "vocab_size": 32128,
}

Write = Callable[[ModelCard, Path, torch.device], None]
"""A card, the assets folder, and the device that makes random numbers."""

PARTS = ("network", "tokenizer", "text_encoder", "discrete_tokenizer", "diffusion_decoder")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=next(iter(CARDS)))
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all that the model has")
    args = parser.parse_args(argv)
    card = find_card(args.model)
    has = parts_of(card)
    if lacks := [part for part in args.parts or () if part not in has]:
        parser.error(f"{card.name} has no {lacks[0]}: its parts are {', '.join(has)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in args.parts or has:
        started = time.perf_counter()
        is_new = write_part(part, card, args.folder, device)
        state = f"written in {time.perf_counter() - started:.1f} s" if is_new else "is there already"
        print(f"{part}: {state}", flush=True)


def parts_of(card: ModelCard) -> dict[str, tuple[HubFiles, Write]]:
    """What the model is made of: where each part lies, and how it is written."""
    if card.tokens is None:
        return {
            "network": (weights_of(card), write_network),
            "tokenizer": (tokenizer_of(card), write_tokenizer),
            "text_encoder": (text_encoder_of(card), write_t5),
        }
    parts: dict[str, tuple[HubFiles, Write]] = {
        "network": (weights_of(card), write_token_network),
        "discrete_tokenizer": (discrete_tokenizer_of(card), write_discrete_tokenizer),
    }
    if card.has_diffusion_decoder:
        parts["tokenizer"] = (tokenizer_of(card), write_tokenizer)
        parts["diffusion_decoder"] = (diffusion_decoder_of(card), write_decoder)
    return parts


def write_part(part: str, card: ModelCard, assets: Path, device: torch.device) -> bool:
    """False if its folder is there."""
    files, write = parts_of(card)[part]
    if (assets / files.assets_name / files.subfolder).is_dir():
        return False
    write(card, assets, device)
    return True


def lazy_network(card: ModelCard, device: torch.device) -> dict[str, LazyTensor]:
    """Every parameter from a seed of its own name, made when it is read."""

    def made(name: str, size: tuple[int, ...]) -> LazyTensor:
        def load(index: tuple[slice, ...]) -> Tensor:
            generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
            return random_parameter(name, size, generator)[index].to(torch.bfloat16).cpu()

        return LazyTensor(size, torch.bfloat16, load)

    return {name: made(name, size) for name, size in parameter_shapes(card.network).items()}


def write_network(card: ModelCard, assets: Path, device: torch.device) -> None:
    files = weights_of(card)
    target = assets / files.assets_name / files.subfolder
    target.parent.mkdir(parents=True, exist_ok=True)
    write_torch_dist(target, lazy_network(card, device), shape=card.network)


def write_tokenizer(card: ModelCard, assets: Path, device: torch.device) -> None:
    folder = assets / tokenizer_of(card).assets_name
    if isinstance(card.tokenizer, WanTokenizerShape):
        write_released_wan_tokenizer(card.tokenizer, folder, seed=0)
    else:
        write_released_tokenizer(card.tokenizer, folder, seed=0, layout="safetensors")


def write_token_network(card: ModelCard, assets: Path, device: torch.device) -> None:
    assert card.tokens is not None
    files = weights_of(card)
    with new_path(assets / files.assets_name / files.subfolder) as folder:
        folder.mkdir()
        rules = token_rules_for(card.tokens.network, RELEASED_TOKENS)
        write_random_safetensors(folder / "model.safetensors", rules, random_token_parameter, device=device)


def write_decoder(card: ModelCard, assets: Path, device: torch.device) -> None:
    shape = card.network
    with new_path(assets / diffusion_decoder_of(card).assets_name) as folder:
        folder.mkdir()
        rules = rules_for(shape, RELEASED[shape.family], prefix="net.")
        write_random_safetensors(folder / "model.safetensors", rules, random_parameter, device=device)
        text = torch.randn(1, shape.text_length, shape.text_dim, generator=torch.Generator().manual_seed(0))
        write_aux_vars(folder, text.to(torch.bfloat16))


def write_discrete_tokenizer(card: ModelCard, assets: Path, device: torch.device) -> None:
    assert card.tokens is not None
    with new_path(assets / discrete_tokenizer_of(card).assets_name) as folder:
        write_released_discrete_tokenizer(card.tokens.tokenizer, folder, seed=0, layout="safetensors")


def write_t5(card: ModelCard, assets: Path, device: torch.device) -> None:
    from transformers import T5Config, T5EncoderModel

    folder = assets / text_encoder_of(card).assets_name
    write_text_encoder(folder, text_dim=card.network.text_dim, seed=0)
    (folder / "model.safetensors").unlink()
    fields = {**json.loads((folder / "config.json").read_text()), **T5_11B}
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = T5EncoderModel(T5Config(**fields))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")


if __name__ == "__main__":
    main()
