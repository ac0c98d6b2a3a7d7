"""Context parallel attention equals attention, forward and backward, for a length no rank count divides."""

from pathlib import Path

import pytest
import torch

from tests.parallel import context_worker as worker
from tests.parallel import launcher

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[2, 3])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp("context")
    launcher.run_ranks(request.param, HERE / "context_worker.py", str(folder))
    return request.param, folder


@pytest.mark.parametrize("form", ["heads", "gathering"])
def test_output_and_gradients_are_those_of_one_rank(outcome: tuple[int, Path], form: str) -> None:
    num_ranks, folder = outcome
    *qkv, weight = worker.inputs()
    whole = [part.requires_grad_() for part in qkv]
    out = worker.dot_product_attention(*whole)
    (out * weight).sum().backward()
    expected = [out.detach(), *(part.grad for part in whole)]
    for rank in range(num_ranks):
        found = torch.load(folder / f"{form}_{num_ranks}_{rank}.pt", weights_only=True)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
