"""The Triton kernels beside the operations they stand for, by Triton's interpreter on the CPU, in a process.

Where Triton is: PyTorch for CPUs comes without, and tests/gpu runs the kernels themselves.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; tests/gpu tests the same"
)
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("check", ["heads", "modulation", "additions", "rounding", "norms", "tokens"])
def test_a_kernel_computes_what_the_operations_do(check: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.interpreted_kernels", check]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
