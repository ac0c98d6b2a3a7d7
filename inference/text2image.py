"""Text2Image as Predict2 published it: torchrun (or srun, or python) inference/text2image.py ..."""

import os
import sys
from collections.abc import Mapping, Sequence

from cosmos_nemo.cli import parse_text2image
from cosmos_nemo.cli.text2image import FLAG_NAMES
from cosmos_nemo.launch import run


def main(argv: Sequence[str], *, environ: Mapping[str, str] = os.environ) -> int:
    """The exit status; see launch.run."""
    return run(lambda: parse_text2image(argv), flag_names=FLAG_NAMES, environ=environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
