"""`cosmos-nemo convert SRC DST --to LAYOUT`: a checkpoint from any layout into another."""

import argparse
import sys
from pathlib import Path

from cosmos_nemo.catalog import CARDS, CatalogError

_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint of any layout, see `inspect`")
    parser.add_argument("target", type=Path, metavar="DST", help="new folder")
    parser.add_argument(
        "--to",
        required=True,
        choices=("nemo", "predict1", "safetensors", "diffusers"),
        help="nemo: torch_dist, as --nemo_checkpoint takes it; predict1: model.pt (needs host memory for all "
        "of it); safetensors: in the same names; diffusers: a folder for CosmosTransformer3DModel",
    )
    parser.add_argument(
        "--model", metavar="CARD", help=f"found by its sizes if left out; one of {', '.join(CARDS)}"
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="of the numbers written (default: as they are)")


def run(args: argparse.Namespace) -> int:
    """0 if DST was written; 2 if SRC, DST or a flag is wrong, 1 if the disk fails: nothing is left then."""
    import torch
    from tqdm import tqdm

    from cosmos_nemo.checkpoint.convert import convert
    from cosmos_nemo.checkpoint.reader import CheckpointError

    dtype = getattr(torch, _DTYPES[args.dtype]) if args.dtype else None
    try:
        with tqdm(unit=" tensors", leave=False, disable=None) as bar:

            def on_tensor(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            identity = convert(
                args.source, args.target, to=args.to, model=args.model, dtype=dtype, on_tensor=on_tensor
            )
    except (CheckpointError, CatalogError) as error:
        print(f"cosmos-nemo convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cosmos-nemo convert: {args.target} was not written: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: {identity.base.name}, as {args.to}")
    if identity.overrides:
        print(f"It is not quite {identity.base.name}: {args.target / 'card.json'} says how it differs.")
    return 0
