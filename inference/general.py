"""Worlds from a NeMo checkpoint: torchrun (or srun, or python) inference/general.py --prompt ..."""

import os
import sys
from collections.abc import Mapping, Sequence

from cosmos_nemo.cli import parse_general
from cosmos_nemo.launch import run


def main(argv: Sequence[str], *, environ: Mapping[str, str] = os.environ) -> int:
    """The exit status; see launch.run."""
    return run(lambda: parse_general(argv), environ=environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
