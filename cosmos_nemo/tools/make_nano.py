"""`cosmos-nemo make-nano`: the embedded nano models from nothing, on one GPU."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_nemo.parallel.startup import prepare_process
from cosmos_nemo.request import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cosmos_nemo.training.loop import StepReport

_UNFINISHED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `cosmos-nemo make-nano`."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="work folder; the same command goes on there"
    )
    parser.add_argument("--seconds", type=float, help="stop after about so long, to be called again")
    parser.add_argument("--seed", type=int, default=0, help="0")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="of the steps and clips, to try it out; 1 makes the files"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="make only these models; what they need of the others is taken from the package",
    )
    parser.add_argument(
        "--subject_videos", action="store_true", help="write only the teal robot's clips and captions to DIR"
    )


def run(args: argparse.Namespace) -> int:
    """0 everything is in DIR/assets and DIR/teal_robot; 2 a bad flag; 3 the time was up: call again."""
    try:
        return _serve(args)
    except RequestError as error:
        print(f"cosmos-nemo make-nano: {error}", file=sys.stderr)
        return 2


def _serve(args: argparse.Namespace) -> int:
    if not 0 < args.fraction <= 1:
        raise RequestError(f"--fraction {args.fraction:g} must be above 0 and at most 1.")
    if args.subject_videos:
        from cosmos_nemo.training.nano.make import write_subject_videos

        write_subject_videos(args.folder, seed=args.seed)
        print(f"{args.folder}: clips of the teal robot as .npy, their captions as .txt")
        return 0
    prepare_process()
    import torch

    from cosmos_nemo.catalog import CARDS
    from cosmos_nemo.parallel.groups import start_alone, stop
    from cosmos_nemo.training.nano.make import Maker, take_shipped
    from cosmos_nemo.training.nano.recipe import RECIPE, fraction_of

    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name, 0) if name == "cuda" else torch.device(name)
    card = CARDS["Cosmos-Nano-Text2World"]
    maker = Maker(
        folder=args.folder,
        card=card,
        recipe=fraction_of(RECIPE, args.fraction),
        groups=start_alone(device),
        device=device,
        seed=args.seed,
        only=frozenset(args.only),
        deadline=time.monotonic() + args.seconds if args.seconds else float("inf"),
        say=print,
        on_step=_progress(),
    )
    if args.only:
        maker.check_only()
        maker.check_recipe()
        take_shipped(args.folder, but=maker.only)
    is_complete = maker.make()
    stop()
    print(f"{args.folder}: {'complete' if is_complete else 'not finished, call again'}")
    return 0 if is_complete else _UNFINISHED


def _progress() -> "Callable[[StepReport], None]":
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(desc="train", unit="step", mininterval=5, dynamic_ncols=True)

    def advance(report: "StepReport") -> None:
        bar.set_postfix(step=report.step, loss=f"{report.loss:.4f}", refresh=False)
        bar.update()

    return advance
