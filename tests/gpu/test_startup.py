"""What the doors set for PyTorch: in a process of its own, because it is read when a GPU is first used."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu
_CODE = """
import json
import torch
from cosmos_nemo.parallel.startup import prepare_process

prepare_process()
kept = torch.zeros(2**24, device="cuda")
print(json.dumps([segment["is_expandable"] for segment in torch.cuda.memory_snapshot()]))
"""


def test_the_allocator_grows_its_segments() -> None:
    ended = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [True]
