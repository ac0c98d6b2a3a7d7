"""Rank 0 encodes the prompts of all ranks."""

from pathlib import Path

import torch

from cosmos_nemo.tools.standin_text import write_text_encoder
from tests.parallel import launcher
from tests.parallel.text_worker import PROMPTS, encoder

WORLD = 2


def test_rank_0_encodes_and_every_rank_gets_its_embeddings_or_its_error(tmp_path: Path) -> None:
    write_text_encoder(tmp_path / "t5", text_dim=16, seed=0)
    launcher.run_ranks(WORLD, Path(__file__).parent / "text_worker.py", str(tmp_path))
    alone = encoder(tmp_path / "t5")
    expected = alone(PROMPTS)
    for rank in range(WORLD):
        for run in range(2):
            assert torch.equal(torch.load(tmp_path / f"text{rank}_{run}.pt"), expected)
        assert "absent" in (tmp_path / f"error{rank}").read_text()
    assert not (tmp_path / "cache1").exists() and len(list((tmp_path / "cache0").iterdir())) == 2
