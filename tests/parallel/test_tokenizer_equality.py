"""Pieces that ranks decode at the same time, one behind the other, are the video that one rank decodes."""

from pathlib import Path

import pytest
import torch

from cosmos_nemo.models.video_tokenizer.model import to_uint8
from tests.parallel import launcher
from tests.parallel import tokenizer_worker as worker

HERE = Path(__file__).parent


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_pieces_of_all_ranks_are_the_video_of_one(num_ranks: int, tmp_path: Path) -> None:
    launcher.run_ranks(num_ranks, HERE / "tokenizer_worker.py", str(tmp_path))
    for name, build in worker.TOKENIZERS.items():
        ranks = [torch.load(tmp_path / f"{name}_{rank}.pt", weights_only=True) for rank in range(num_ranks)]
        one = build()
        for length in worker.LENGTHS:
            whole = one.decode(worker.latent_of(length))
            pieces = [rank[length] for rank in ranks if rank[length] is not None]
            assert len(pieces) == max(1, min(num_ranks, length // 2))
            assert [rank[length] is None for rank in ranks] == sorted(rank[length] is None for rank in ranks)
            video = torch.cat(pieces, dim=2)
            assert video.shape == whole.shape and whole.std() > 0.1
            assert (video - whole).abs().max() <= 1e-5 * whole.std()
            assert torch.equal(torch.load(tmp_path / f"{name}_frames_{length}.pt"), to_uint8(video))
    whole = worker.wan_tokenizer().decode(worker.latent_of(worker.LENGTHS[-1]))
    video = torch.cat([torch.load(tmp_path / f"channels_last_{rank}.pt") for rank in range(num_ranks)], dim=2)
    assert (video - whole).abs().max() <= 1e-5 * whole.std()
