"""Random weights at a model's full size, as an assets folder for general.py: network, tokenizer and T5-11B.

python benchmarks/full_size_assets.py DIR --model Cosmos-1.0-Diffusion-7B-Text2World
python benchmarks/full_size_assets.py DIR --model Cosmos-Predict2-2B-Video2World
python benchmarks/full_size_assets.py DIR --model Cosmos-Predict2-14B-Video2World --parts network

A NeMo torch_dist checkpoint written by this package, a tokenizer (Wan2.1's for Predict2), and a T5 encoder
with the stand-in's tokenizer. For measurements on machines that have no released weights. About 26 GB for the
7B, 15 GB for the 2B of Predict2, 30 GB for the network of its 14B: in this layout the modulation matrices are
stored with the zeros between their blocks. Tensors are made one at a time. What is in DIR already stays.
"""

import argparse
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import CARDS, ModelCard, WanTokenizerShape, find_card
from cosmos_nemo.checkpoint.locate import text_encoder_of, tokenizer_of, weights_of
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer import write_torch_dist
from cosmos_nemo.tools.standin_network import random_parameter
from cosmos_nemo.tools.standin_text import write_text_encoder
from cosmos_nemo.tools.standin_tokenizer import write_released_tokenizer
from cosmos_nemo.tools.standin_wan_tokenizer import write_released_wan_tokenizer

T5_11B = {
    "d_model": 1024,
    "d_kv": 128,
    "d_ff": 65536,
    "num_heads": 128,
    "num_layers": 24,
    "vocab_size": 32128,
}


PARTS = ("network", "tokenizer", "text_encoder")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=next(iter(CARDS)))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = parser.parse_args(argv)
    card = find_card(args.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in args.parts:
        started = time.perf_counter()
        is_new = write_part(part, card, args.folder, device)
        state = f"written in {time.perf_counter() - started:.1f} s" if is_new else "is there already"
        print(f"{part}: {state}", flush=True)


def write_part(part: str, card: ModelCard, assets: Path, device: torch.device) -> bool:
    """False if its folder is there."""
    files, write = {
        "network": (weights_of(card), write_network),
        "tokenizer": (tokenizer_of(card), write_tokenizer),
        "text_encoder": (text_encoder_of(card), write_t5),
    }[part]
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
