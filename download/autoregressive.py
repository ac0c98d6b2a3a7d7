"""Fetches released autoregressive models, and all that they need to run, into a folder of checkpoints.

export HF_TOKEN=...   # of an account that accepted the terms; the first lines say which, and where
python download/autoregressive.py --model_sizes 4B 12B --checkpoint_dir checkpoints

Stopped, or run again, it goes on with what is missing.
"""

import argparse
import sys
from pathlib import Path

from cosmos_nemo.checkpoint.autoregressive import MODELS, files_of
from cosmos_nemo.fetch import fetch_into


def main() -> int:
    parser = _parser()
    flags = parser.parse_args()
    root = Path(flags.checkpoint_dir)
    if root.exists() and not root.is_dir():
        parser.error(f"--checkpoint_dir {root} is a file. Name a folder; it is made if it is not there.")
    return fetch_into(root, files_of(flags.model_sizes), dry_run=flags.dry_run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="This version runs 4B and 12B (inference/base.py); the others can be fetched already.\n"
        "Exit status: 0 everything is there, 2 bad flags, 1 something is missing.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model_sizes",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        metavar="SIZE",
        help=f"{', '.join(MODELS)} (unasked: all)",
    )
    parser.add_argument(
        "--checkpoint_dir", default="checkpoints", help="the folder that inference takes as --checkpoint_dir"
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
