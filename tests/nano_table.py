"""The table that benchmarks/nano_quality.py makes of a shipped model, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import nano_quality

_ROOT = Path(__file__).parents[1]

Table = dict[str, dict[str, dict[str, float]]]


def quality(folder: Path, *flags: str) -> Table:
    """The .json of benchmarks/nano_quality.py with these flags, on the CPU, made in this process."""
    assert nano_quality.main([*flags, *_how(folder)]) == 0
    return _table(folder)


def quality_of_a_process(folder: Path, *flags: str) -> Table:
    """The same, from a process of its own, as a person starts it."""
    command = [sys.executable, "-W", "ignore", str(_ROOT / "benchmarks" / "nano_quality.py")]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    subprocess.run([*command, *flags, *_how(folder)], env=environment, check=True, stdout=subprocess.DEVNULL)
    return _table(folder)


def _how(folder: Path) -> list[str]:
    how = ["--batch_size", "8", "--device", "cpu", "--backend", "torch"]
    return [*how, "--json", str(folder / "table.json")]


def _table(folder: Path) -> Table:
    return dict(json.loads((folder / "table.json").read_text()))
