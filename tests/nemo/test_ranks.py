"""Megatron's loader on several tensor parallel ranks; no NeMo is needed for it."""

import shutil
from pathlib import Path

from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_torch_dist
from tests.nemo import sharded_worker as worker
from tests.parallel import launcher
from tests.test_layering import ROOT
from tests.tiny_tokens import TEXT, random_weights


def test_two_ranks_load_a_nemo_checkpoint_with_the_bits_of_our_reader(tmp_path: Path) -> None:
    """The token transformer's gate is cut in two, and each half over the ranks."""
    weights = {name: LazyTensor.of(tensor) for name, tensor in random_weights(TEXT).items()}
    write_token_torch_dist(tmp_path / "tokens", weights, shape=TEXT)
    shutil.copytree(ROOT / "tests" / "golden" / "nemo_text_torch_dist", tmp_path / "diffusion")
    ended = launcher.run_ranks(worker.RANKS, Path(worker.__file__), str(tmp_path), timeout=120)
    for rank in ended:
        assert "tokens: 31 tensors, different: []" in rank.out
        assert "diffusion: 36 tensors, different: []" in rank.out
