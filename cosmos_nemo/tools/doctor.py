"""`cosmos-nemo doctor`: what this machine can run.

`look` (doctor_machine.py, and doctor_hub.py for the hub) asks, `runnable` (doctor_verdict.py) judges the
answers and `report` (doctor_report.py) puts them into lines.
"""

import argparse
import sys
from pathlib import Path

from cosmos_nemo.catalog import CARDS, NOT_ON_THE_HUB, CatalogError, ModelCard, find_card
from cosmos_nemo.tools.doctor_machine import look
from cosmos_nemo.tools.doctor_report import report
from cosmos_nemo.tools.doctor_verdict import is_small, runnable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="CARD", help="only this model (cosmos-nemo models lists them)")
    parser.add_argument(
        "--checkpoint_dir", type=Path, metavar="DIR", help="folder with the models' files, beside the cache"
    )


def run(args: argparse.Namespace) -> int:
    """0 if the machine can run the card asked for, or at least one; 1 if not; 2 for a bad argument."""
    try:
        cards = (find_card(args.model),) if args.model else _cards_of_interest()
    except CatalogError as error:
        print(f"cosmos-nemo doctor: {error}", file=sys.stderr)
        return 2
    if args.checkpoint_dir is not None and not args.checkpoint_dir.is_dir():
        print(f"cosmos-nemo doctor: --checkpoint_dir {args.checkpoint_dir} is no folder.", file=sys.stderr)
        return 2
    machine = look(cards, checkpoint_dir=args.checkpoint_dir)
    for line in report(machine, cards):
        print(line)
    return 0 if runnable(machine, cards) else 1


def _cards_of_interest() -> tuple[ModelCard, ...]:
    """All but the names that are kept free for a person's own weights."""
    return tuple(card for card in CARDS.values() if _is_released(card) or is_small(card))


def _is_released(card: ModelCard) -> bool:
    return not card.sources.weights.startswith(f"{NOT_ON_THE_HUB}/")
