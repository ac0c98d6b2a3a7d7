"""All ranks go on with the first one's tokens, and end together."""

from pathlib import Path

import torch

from cosmos_nemo.sampling.token_loop import generate
from cosmos_nemo.sampling.tokens import TokenSampling
from tests.parallel import launcher
from tests.parallel.token_generation_worker import SEEDS, WORLD, given
from tests.token_network import FakeTokenNetwork


def test_ranks_draw_the_first_ones_tokens_and_stop_at_its_nan(tmp_path: Path) -> None:
    launcher.run_ranks(WORLD, Path(__file__).parent / "token_generation_worker.py", str(tmp_path))
    of_first, of_second = (
        generate(
            FakeTokenNetwork(seed=rank),
            given().flatten(1),
            num_tokens=45,
            sampling=TokenSampling(),
            seeds=SEEDS,
        )
        for rank in range(WORLD)
    )
    assert not torch.equal(of_first, of_second)
    for rank in range(WORLD):
        tokens_BTHW = torch.load(tmp_path / f"tokens{rank}.pt", weights_only=True)
        assert torch.equal(tokens_BTHW[:, 1:].flatten(1), of_first)
        assert "after 0 drawn tokens of video 0" in (tmp_path / f"error{rank}").read_text()
