"""Fetches released diffusion models, and all that they need to run, into a folder of checkpoints.

export HF_TOKEN=...   # of an account that accepted the terms; the first lines say which, and where
python download/diffusion.py --model_sizes 7B 14B --model_types Text2World --checkpoint_dir checkpoints

Stopped, or run again, it goes on with what is missing.
"""

import argparse
import sys
from pathlib import Path

from cosmos_nemo.checkpoint.families import (
    FAMILIES,
    INFERENCE_RUNS,
    PREDICT1,
    RATES,
    RESOLUTIONS,
    SIZES,
    TYPES,
    FamilyError,
    choose_family,
    choose_models,
    choose_variants,
    files_of,
)
from cosmos_nemo.fetch import fetch_into


def main() -> int:
    parser = _parser()
    flags = parser.parse_args()
    try:
        family = choose_family(flags.family, flags.model_sizes)
        models = choose_models(family, flags.model_sizes, flags.model_types)
        variants = choose_variants(family, models, resolutions=flags.resolution, rates=flags.fps)
    except FamilyError as error:
        parser.error(str(error))
    root = Path(flags.checkpoint_dir)
    if root.exists() and not root.is_dir():
        parser.error(f"--checkpoint_dir {root} is a file. Name a folder; it is made if it is not there.")
    wanted = files_of(family, models, variants)
    return fetch_into(root, wanted, dry_run=flags.dry_run)


def _parser() -> argparse.ArgumentParser:
    families = FAMILIES.values()
    runs = "; ".join(f"{', '.join(types)} of {name}" for name, types in INFERENCE_RUNS.items())
    sizes = "; ".join(f"{family.name} has {', '.join(family.sizes)}" for family in families)
    types = "; ".join(f"{family.name} has {', '.join(family.types)}" for family in families)
    unasked = "; ".join(f"{' and '.join(family.default_types)} of {family.name}" for family in families)
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"This version runs {runs}; the others can be fetched already.\n"
        "Exit status: 0 everything is there, 2 bad flags, 1 something is missing.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model_sizes",
        nargs="+",
        choices=SIZES,
        metavar="SIZE",
        help=f"{sizes} (unasked: all of the family)",
    )
    parser.add_argument(
        "--model_types",
        nargs="+",
        choices=TYPES,
        metavar="TYPE",
        help=f"{types} (unasked: {unasked})",
    )
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        help=f"needed for 14B alone; else 7B means {PREDICT1.name} and 2B predict2",
    )
    parser.add_argument(
        "--resolution",
        nargs="+",
        choices=RESOLUTIONS,
        metavar="ROWS",
        help=f"of Video2World of predict2: {' or '.join(RESOLUTIONS)}, for videos of about so many rows; 720",
    )
    parser.add_argument(
        "--fps",
        nargs="+",
        choices=RATES,
        metavar="RATE",
        help=f"of Video2World of predict2: {' or '.join(RATES)} frames per second; 16",
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
