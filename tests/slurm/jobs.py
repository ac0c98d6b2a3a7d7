"""The scripts of docs/slurm.md, for the nodes of the tests' cluster, and the nano model's flags."""

import re
from collections.abc import Mapping

from tests.parallel.launcher import ROOT
from tests.slurm.cluster import RANKS_PER_NODE

GENERAL = str(ROOT / "inference/general.py")
NANO = ("--model", "Cosmos-Nano-Text2World")
PROMPT = ("--prompt", "A red ball moves to the left on a dark background.")
SMALL = ("--height", "32", "--width", "48", "--num_video_frames", "9")
"""A size of which a step takes a hundredth of a second."""


def script(name: str, *, replaced: Mapping[str, str] | None = None) -> str:
    """The script of that name on the page, with as many ranks as these nodes have, and without GPUs.

    replaced: texts of it, each of which it must hold.
    """
    page = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(#!.*?)^```", page, re.DOTALL | re.MULTILINE)
    (text,) = [block for block in blocks if f"# {name}:" in block]
    text = text.replace("#SBATCH --gpus-per-node=8\n", "")
    text = re.sub(r"(tasks|nproc)-per-node=8", rf"\1-per-node={RANKS_PER_NODE}", text)
    assert "=8" not in text and "gpu" not in text
    for old, new in (replaced or {}).items():
        assert old in text, f"{name} holds no {old}"
        text = text.replace(old, new)
    return text
