"""The table that benchmarks/nano_quality.py makes of a shipped model, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]

Table = dict[str, dict[str, dict[str, float]]]


def quality(folder: Path, *flags: str) -> Table:
    """The .json of benchmarks/nano_quality.py with these flags, on the CPU, without "tokenizer alone"."""
    return _made(folder, ["-m", "tests.nano_process", *flags])


def quality_of_a_person(folder: Path, *flags: str) -> Table:
    """The same, started as a person starts it, and whole."""
    return _made(folder, [str(_ROOT / "benchmarks" / "nano_quality.py"), *flags])


def _made(folder: Path, command: list[str]) -> Table:
    path = folder / "table.json"
    how = ["--batch_size", "8", "--device", "cpu", "--backend", "torch", "--json", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-W", "ignore", *command, *how]
    subprocess.run(command, cwd=_ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads(path.read_text()))
