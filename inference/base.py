"""Autoregressive models as Predict1 published them: torchrun (or srun, or python) inference/base.py ..."""

import os
import sys
from collections.abc import Mapping, Sequence

from cosmos_nemo.cli import parse_autoregressive
from cosmos_nemo.cli.autoregressive import FLAG_NAMES
from cosmos_nemo.launch import run


def main(argv: Sequence[str], *, environ: Mapping[str, str] = os.environ) -> int:
    """The exit status; see launch.run."""
    return run(lambda: parse_autoregressive(argv), flag_names=FLAG_NAMES, environ=environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
