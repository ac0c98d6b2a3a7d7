"""The table that benchmarks/nano_quality.py makes of a shipped model, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def quality(folder: Path, *flags: str) -> dict[str, dict[str, dict[str, float]]]:
    """The .json of benchmarks/nano_quality.py with these flags, on the CPU."""
    path = folder / "table.json"
    how = ["--batch_size", "8", "--device", "cpu", "--backend", "torch", "--json", str(path)]
    command = [sys.executable, "-W", "ignore", str(_ROOT / "benchmarks" / "nano_quality.py"), *flags, *how]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads(path.read_text()))
