"""The Python of docs/checkpoints.md runs as it stands, on a small model of that name."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import CARDS, overrides_of
from cosmos_nemo.checkpoint.card_file import write_card_file
from tests.nemo.conftest import NANO, assert_same_bits, needs_nemo, published_nano, tensors_of
from tests.test_layering import ROOT

pytestmark = [
    needs_nemo,
    pytest.mark.skipif(torch.cuda.is_available(), reason="it is for machines without CUDA"),
]
MODEL = "Cosmos-Predict1-7B-Text2World"


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    source = Path("checkpoints") / MODEL
    published_nano(NANO, source, "predict1")
    write_card_file(source, overrides_of(replace(CARDS[MODEL], network=CARDS[NANO].network), CARDS[MODEL]))
    known: dict = {}
    for block in blocks:
        exec(block, known)
    assert known["model"].config.model == MODEL
    assert_same_bits(tensors_of(Path("checkpoints/safetensors-7b")), tensors_of(source))
    assert_same_bits(known["loaded"], known["loaded"] | _parameters(known["model"]))
    assert_same_bits(tensors_of(Path("checkpoints/saved-7b")), tensors_of(Path("checkpoints/nemo-7b")))


def _parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"module.{name}": parameter.detach() for name, parameter in model.module.named_parameters()}
