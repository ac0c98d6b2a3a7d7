"""Text2World from a NeMo checkpoint: torchrun (or srun, or python) inference/general.py --prompt ..."""

import sys
from collections.abc import Sequence

from cosmos_nemo.cli import parse_general
from cosmos_nemo.launch import run


def main(argv: Sequence[str]) -> int:
    return run(lambda: parse_general(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
