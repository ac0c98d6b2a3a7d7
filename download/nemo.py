"""Fetches the Cosmos 1.0 models in NeMo's format, and all that they need to run, into HF_HOME.

export HF_TOKEN=...   # of an account that accepted the terms; the first lines say which, and where
export HF_HOME=...    # where the files go; inference looks there too
python download/nemo.py

Stopped, or run again, it goes on with what is missing.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from cosmos_nemo.catalog import CARDS, Task
from cosmos_nemo.checkpoint.locate import HubFiles, downloads_of, weights_of
from cosmos_nemo.fetch import fetch, warn

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.download import HubCache


def main() -> int:
    flags = _parser().parse_args()
    if not os.environ.get("HF_HOME"):
        warn("HF_HOME is not set: export HF_HOME=<folder for the checkpoints> first.")
        return 2
    return fetch(_wanted(flags.models), _cache, dry_run=flags.dry_run)


def _cache() -> "HubCache":
    from cosmos_nemo.checkpoint.download import HubCache
    from cosmos_nemo.checkpoint.hub import cache_folder

    return HubCache(root=cache_folder())


def _wanted(models: list[str]) -> list[HubFiles]:
    """Every repository once, the networks first: the rest is shared."""
    cards = [CARDS[model] for model in models]
    networks = [weights_of(card) for card in cards]
    shared = [files for card in cards for files in downloads_of(card)]
    return list({files.repository: files for files in (*networks, *shared)}.values())


def _parser() -> argparse.ArgumentParser:
    models = [
        name for name, card in CARDS.items() if weights_of(card).is_released and card.sources.weights_folder
    ]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 everything is there, 2 bad flags, 1 something is missing.",
        allow_abbrev=False,
    )
    unasked = [name for name in models if CARDS[name].task is Task.TEXT2WORLD]
    parser.add_argument(
        "--models",
        nargs="+",
        choices=models,
        default=unasked,
        metavar="MODEL",
        help=f"{' '.join(models)} (unasked: those of Text2World)",
    )
    parser.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="list files and sizes, terms and free space; fetch nothing",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
