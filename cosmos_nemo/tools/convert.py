"""`cosmos-nemo convert SRC DST --to LAYOUT`: a checkpoint from any layout into another."""

import argparse
import sys
from pathlib import Path

from cosmos_nemo.catalog import CARDS, CatalogError
from cosmos_nemo.checkpoint.card_file import find_card_file

_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="checkpoint of any layout, see `inspect`")
    parser.add_argument("target", type=Path, metavar="DST", help="new folder")
    parser.add_argument(
        "--to",
        required=True,
        choices=("nemo", "predict1", "predict2", "safetensors", "diffusers"),
        help="nemo: torch_dist, as --nemo_checkpoint takes it; predict1, predict2: that family's model.pt "
        "(needs host memory for all of it); safetensors: in the same names; diffusers: a folder for "
        "CosmosTransformer3DModel (not of autoregressive models)",
    )
    parser.add_argument(
        "--model",
        metavar="CARD",
        help="if left out: found by its sizes; where several models have them, or there is a card.json, by "
        "NeMo's context or the folder's name; one of " + ", ".join(CARDS),
    )
    parser.add_argument(
        "--load_ema", action="store_true", help="of a .pt of Predict2, the moving average of the weights"
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

            model = args.model or _called_after(args.source)
            identity = convert(
                args.source,
                args.target,
                to=args.to,
                model=model,
                dtype=dtype,
                averaged=args.load_ema,
                on_tensor=on_tensor,
            )
    except (CheckpointError, CatalogError) as error:
        print(f"cosmos-nemo convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cosmos-nemo convert: {args.target} was not written: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: {identity.name}, as {args.to}")
    if identity.others:
        have, those = ("has", "that one") if len(identity.others) == 1 else ("have", "one of those")
        print(f"{', '.join(identity.others)} {have} the same sizes: pass --model if it is {those}.")
    if identity.overrides:
        print(f"It is not quite {identity.name}: {args.target / 'card.json'} says how it differs.")
    return 0


def _called_after(source: Path) -> str | None:
    """The model that a checkpoint with a card.json is called: no sizes tell of what it is a variant."""
    from cosmos_nemo.checkpoint.autoregressive import MODELS
    from cosmos_nemo.checkpoint.called import called

    card_file = find_card_file(source)
    return None if card_file is None else called(card_file.parent, {*CARDS, *MODELS.values()})
