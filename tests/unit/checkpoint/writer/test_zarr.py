import json

import pytest
import torch

from cosmos_nemo.checkpoint.reader import LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.writer import write_zarr

KEY = "module.decoder.layers.mlp.linear_fc1.weight"


@pytest.fixture
def half(lazy):
    """The network in the released type."""
    return {name: LazyTensor.of(tensor.read().to(torch.bfloat16)) for name, tensor in lazy.items()}


def test_the_files_are_the_released_ones(tmp_path, lazy, shape, golden):
    write_zarr(tmp_path / "new", lazy, shape=shape)
    theirs = {
        file.relative_to(golden / "nemo_text_zarr"): file.read_bytes()
        for file in (golden / "nemo_text_zarr").rglob("*")
        if file.is_file()
        and not any(word in str(file) for word in ("_extra_state", "logvar", ".seq", "common"))
    }
    for name, content in theirs.items():
        ours = (tmp_path / "new" / name).read_bytes()
        assert ours == content if name.name[0].isdigit() else json.loads(ours) == json.loads(content)
    written = {file.relative_to(tmp_path / "new") for file in (tmp_path / "new").rglob("*") if file.is_file()}
    assert {str(name) for name in written - theirs.keys()} == {"common.pt"}


def test_bfloat16_is_written_raw_and_read_back(tmp_path, half, shape, read_network, assert_equal):
    write_zarr(tmp_path / "new", half, shape=shape)
    assert json.loads((tmp_path / "new" / KEY / ".zarray").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "new" / KEY / "1.0.0").stat().st_size == 256 * 64 * 2
    assert_equal(read_network(tmp_path / "new"), {name: tensor.read() for name, tensor in half.items()})


def test_overrides_become_card_json_inside(tmp_path, half, shape):
    write_zarr(tmp_path / "new", half, shape=shape, card_overrides={"num_steps": 4})
    assert json.loads((tmp_path / "new" / "card.json").read_text()) == {"num_steps": 4}
    assert open_checkpoint(tmp_path / "new").layout == "zarr"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_megatron_reads_it(tmp_path, lazy, shape, one_rank, dtype):
    pytest.importorskip("tensorstore", reason="Megatron's own reader of this layout, of the extra `nemo`")
    from megatron.core import dist_checkpointing

    tensors = {name: LazyTensor.of(tensor.read().to(dtype)) for name, tensor in lazy.items()}
    write_zarr(tmp_path / "new", tensors, shape=shape, card_overrides={"num_steps": 4})
    whole = open_checkpoint(tmp_path / "new").read(KEY)
    wanted = {
        str(layer): dist_checkpointing.ShardedTensor.from_rank_offsets(
            KEY, torch.zeros(256, 64, dtype=dtype), (0, layer, 2), prepend_axis_num=1
        )
        for layer in range(2)
    }
    answers = dist_checkpointing.load(wanted, str(tmp_path / "new"))
    assert all(torch.equal(answers[str(layer)], whole[layer]) for layer in range(2))
