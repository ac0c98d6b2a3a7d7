"""Fetches the released Cosmos 1.0 diffusion models, tokenizer and text encoder into HF_HOME.

export HF_TOKEN=...   # of an account that accepted the models' licences
export HF_HOME=...    # where the files go; inference looks there too
python download/diffusion_nemo.py
"""

import argparse
import os
import sys

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.locate import (
    HubFiles,
    LocateError,
    fetch,
    text_encoder_of,
    tokenizer_of,
    weights_of,
)


def main() -> int:
    released = [card.name for card in CARDS.values() if weights_of(card).is_released]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=released, default=released, metavar="MODEL", help=" ".join(released)
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be fetched, fetch nothing")
    options = parser.parse_args()
    home = os.environ.get("HF_HOME")
    if not home:
        print("HF_HOME is not set: export HF_HOME=<folder for the checkpoints> first.", file=sys.stderr)
        return 2
    for files in _wanted(options.models):
        print(_line(files, home=home), flush=True)
        if options.dry_run:
            continue
        try:
            print(f"  in {fetch(files)}", flush=True)
        except LocateError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def _wanted(models: list[str]) -> list[HubFiles]:
    """Every repository once, tokenizer and text encoder first: they are shared."""
    parts = (tokenizer_of, text_encoder_of, weights_of)
    wanted = [part(CARDS[model]) for part in parts for model in models]
    return list({files.repository: files for files in wanted}.values())


def _line(files: HubFiles, *, home: str) -> str:
    selection = ", ".join(files.allow) if files.allow else "all files"
    without = f" without {', '.join(files.ignore)}" if files.ignore else ""
    return f"{files.repository}: {selection}{without} -> {home}"


if __name__ == "__main__":
    sys.exit(main())
