"""Tensor parallel ranks of the autoregressive transformer make the logits of one rank."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_model_pt, write_token_torch_dist
from tests.parallel import launcher
from tests.parallel import token_worker as worker
from tests.tiny_tokens import random_weights

WRITERS = {"nemo": write_token_torch_dist, "released": write_token_model_pt}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logits")
    for kind, shape in worker.SHAPES.items():
        weights = {name: LazyTensor.of(tensor) for name, tensor in random_weights(shape, seed=3).items()}
        for layout in worker.LAYOUTS:
            WRITERS[layout](path / f"{kind}_{layout}", weights, shape=shape)
    script = Path(__file__).parent / "token_worker.py"
    launcher.run_ranks(max(worker.SIZES), script, str(path), timeout=240)
    return path


def logits(folder: Path, kind: str, layout: str, size: int, rank: int = 0) -> dict[str, Tensor]:
    return torch.load(folder / worker.name_of(kind, layout, size, rank), weights_only=True)


@pytest.mark.parametrize("size", worker.SIZES[1:])
@pytest.mark.parametrize("layout", worker.LAYOUTS)
@pytest.mark.parametrize("kind", worker.SHAPES)
def test_ranks_make_the_logits_of_one_and_all_have_the_same_bits(
    folder: Path, kind: str, layout: str, size: int
) -> None:
    one, many = (logits(folder, kind, layout, ranks) for ranks in (1, size))
    for way in ("at_once", "one_by_one"):
        torch.testing.assert_close(many[way], one[way], rtol=0, atol=3e-5)
        for rank in range(size):
            assert torch.equal(logits(folder, kind, layout, size, rank)[way], many[way])


@pytest.mark.parametrize("size", worker.SIZES)
@pytest.mark.parametrize("kind", worker.SHAPES)
def test_on_any_number_of_ranks_a_video_can_be_read_token_by_token(
    folder: Path, kind: str, size: int
) -> None:
    found = logits(folder, kind, "nemo", size)
    expected = found["at_once"][:, worker.PROMPT - 1 :]
    torch.testing.assert_close(found["one_by_one"], expected, rtol=0, atol=3e-5)
    assert expected.std() > 0.5


@pytest.mark.parametrize("kind", worker.SHAPES)
def test_both_layouts_hold_the_same_network(folder: Path, kind: str) -> None:
    one, other = (logits(folder, kind, layout, 1)["at_once"] for layout in worker.LAYOUTS)
    assert torch.equal(one, other)
