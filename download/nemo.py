"""Fetches the Cosmos 1.0 models in NeMo's format, and all that they need to run, into HF_HOME.

export HF_TOKEN=...   # of an account that accepted the terms; the first lines say which, and where
export HF_HOME=...    # where the files go; inference looks there too
python download/nemo.py

Stopped, or run again, it goes on with what is missing.
"""

import argparse
import os
import sys

from cosmos_nemo.catalog import CARDS, Task
from cosmos_nemo.checkpoint.locate import HubFiles, downloads_of, weights_of


def main() -> int:
    flags = _parser().parse_args()
    if not os.environ.get("HF_HOME"):
        _warn("HF_HOME is not set: export HF_HOME=<folder for the checkpoints> first.")
        return 2
    return _download(_wanted(flags.models), dry_run=flags.dry_run)


def _download(wanted: list[HubFiles], *, dry_run: bool) -> int:
    from cosmos_nemo.checkpoint.download import HubCache, download
    from cosmos_nemo.checkpoint.hub import cache_folder

    try:
        return download(wanted, HubCache(root=cache_folder()), dry_run=dry_run, say=_say, warn=_warn)
    except KeyboardInterrupt:
        _warn("Stopped. The same command goes on from here.")
        return 1


def _wanted(models: list[str]) -> list[HubFiles]:
    """Every repository once, the networks first: the rest is shared."""
    cards = [CARDS[model] for model in models]
    networks = [weights_of(card) for card in cards]
    shared = [files for card in cards for files in downloads_of(card)]
    return list({files.repository: files for files in (*networks, *shared)}.values())


def _say(line: str) -> None:
    print(line, flush=True)


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
