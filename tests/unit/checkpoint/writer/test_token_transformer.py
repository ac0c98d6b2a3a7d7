from pathlib import Path

import pytest
import torch

from cosmos_nemo.checkpoint.convert import lazy_network
from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_model_pt, write_token_torch_dist
from tests.tiny_tokens import SCALED, TEXT, random_weights

WRITERS = {"nemo": write_token_torch_dist, "model.pt": write_token_model_pt}


@pytest.mark.parametrize("shape", [SCALED, TEXT], ids=["scaled", "text"])
@pytest.mark.parametrize(("first", "second"), [("nemo", "model.pt"), ("model.pt", "nemo")])
def test_a_checkpoint_goes_into_the_other_layout_and_back_with_the_same_bits(
    tmp_path: Path, shape: object, first: str, second: str
) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in random_weights(shape).items()}  # type: ignore[arg-type]
    tensors = {name: LazyTensor.of(tensor) for name, tensor in weights.items()}
    for step, kind in enumerate((first, second, first)):
        WRITERS[kind](tmp_path / str(step), tensors, shape=shape)  # type: ignore[arg-type]
        checkpoint = open_checkpoint(tmp_path / str(step))
        tensors = lazy_network(checkpoint, rules=token_rules(shape, checkpoint))  # type: ignore[arg-type]
    for name, tensor in weights.items():
        assert torch.equal(tensors[name].read(), tensor), name


def test_a_released_file_has_the_released_names_and_alone_its_own_memory(tmp_path: Path) -> None:
    weights = random_weights(TEXT)
    lazy = {name: LazyTensor.of(tensor) for name, tensor in weights.items()}
    write_token_model_pt(tmp_path / "out", lazy, shape=TEXT, card_overrides={"network": {"num_layers": 2}})
    content = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert all(name.startswith("model.") for name in content)
    assert "model.layers.1.cross_attention.wk.weight" in content
    size = sum(tensor.numel() * 4 for tensor in weights.values())
    assert (tmp_path / "out" / "model.pt").stat().st_size < 1.2 * size
    assert "num_layers" in (tmp_path / "out" / "card.json").read_text()


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_written_over_and_nothing_stays_of_what_failed(tmp_path: Path, kind: str) -> None:
    def fail(index: object) -> torch.Tensor:
        raise OSError("the disk is gone")

    lazy = {name: LazyTensor.of(tensor) for name, tensor in random_weights(TEXT).items()}
    last = "output_layer.weight"
    broken = lazy | {last: LazyTensor(lazy[last].shape, lazy[last].dtype, fail)}
    with pytest.raises(OSError, match="the disk is gone"):
        WRITERS[kind](tmp_path / "out", broken, shape=TEXT)
    assert list(tmp_path.iterdir()) == []
    WRITERS[kind](tmp_path / "out", lazy, shape=TEXT)
    with pytest.raises(CheckpointError, match="exists already"):
        WRITERS[kind](tmp_path / "out", lazy, shape=TEXT)
