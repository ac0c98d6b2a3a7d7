import json
import weakref

import pytest
import torch

from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.writer import write_torch_dist


@pytest.fixture
def written(tmp_path, lazy, shape):
    write_torch_dist(tmp_path / "new", lazy, shape=shape)
    return tmp_path / "new" / "weights"


def test_the_files_are_those_nemo_writes(written, golden):
    assert sorted(file.name for file in written.iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "common.pt",
        "metadata.json",
    ]
    theirs = golden / "nemo_text_torch_dist" / "weights" / "metadata.json"
    assert json.loads((written / "metadata.json").read_text()) == json.loads(theirs.read_text())
    assert torch.load(written / "common.pt", weights_only=True) == {}


def test_the_tensors_are_the_goldens(written, golden, assert_equal):
    ours, theirs = open_checkpoint(written), open_checkpoint(golden / "nemo_text_torch_dist")
    used = [name for name in theirs.names() if "logvar" not in name and "pos_embedder.seq" not in name]
    assert_equal({n: ours.read(n) for n in ours.names()}, {n: theirs.read(n) for n in used})


def split_axis(name):
    """Of the tensors that the test reads in parts."""
    return 0 if "linear_fc1" in name else 1 if "linear_fc2" in name else None


def sharded(name, part, *, layer, rank, size):
    """What one tensor-parallel rank of a Megatron model asks for."""
    from megatron.core.dist_checkpointing import ShardedTensor

    stacked, axis = int(layer is not None), split_axis(name)
    offsets = [(0, layer, 2)] if stacked else []
    offsets += [(axis + stacked, rank, size)] if axis is not None else []
    return ShardedTensor.from_rank_offsets(name, torch.zeros_like(part), *offsets, prepend_axis_num=stacked)


@pytest.mark.parametrize("size", [1, 2])
def test_megatron_reads_it_whole_and_in_tensor_parallel_parts(written, one_rank, size):
    from megatron.core import dist_checkpointing

    checkpoint = open_checkpoint(written)
    expected = {}
    for name in checkpoint.names():
        whole, axis = checkpoint.read(name), split_axis(name)
        layers = dict(enumerate(whole)) if name.startswith("module.decoder.layers.") else {None: whole}
        for layer, tensor in layers.items():
            parts = [tensor] if axis is None else tensor.chunk(size, dim=axis)
            expected |= {(name, layer, rank): part for rank, part in enumerate(parts)}
    wanted = {
        key: sharded(key[0], part, layer=key[1], rank=key[2], size=size) for key, part in expected.items()
    }
    answers = dist_checkpointing.load({"model": wanted}, str(written))["model"]
    assert answers.keys() == expected.keys()
    assert all(torch.equal(answers[key], part) for key, part in expected.items())


def test_torch_itself_reads_it(written, lazy):
    key = "module.decoder.layers.mlp.linear_fc1.weight"
    state = {key: torch.zeros(2, 256, 64)}
    torch.distributed.checkpoint.load(state, checkpoint_id=written, no_dist=True)
    expected = [lazy[f"decoder.layers.{layer}.mlp.linear_fc1.weight"].read() for layer in range(2)]
    assert torch.equal(state[key], torch.stack(expected))


def test_one_tensor_is_alive_at_a_time(tmp_path, lazy, shape):
    alive, most = weakref.WeakSet(), 0

    def fresh(tensor):
        def load(index):
            nonlocal most
            made = tensor.load(index).clone()
            alive.add(made)
            most = max(most, len(alive))
            return made

        return LazyTensor(tensor.shape, tensor.dtype, load)

    write_torch_dist(tmp_path / "new", {name: fresh(tensor) for name, tensor in lazy.items()}, shape=shape)
    assert most <= 2


def test_values_lie_aligned_so_that_reading_does_not_copy(written):
    checkpoint = open_checkpoint(written)
    assert all(checkpoint.read(name, (slice(0, 1),)).data_ptr() % 64 == 0 for name in checkpoint.names())


def test_overrides_become_card_json_above_the_weights(tmp_path, lazy, shape):
    write_torch_dist(tmp_path / "new", lazy, shape=shape, card_overrides={"num_steps": 4})
    assert json.loads((tmp_path / "new" / "card.json").read_text()) == {"num_steps": 4}
    write_torch_dist(tmp_path / "bare", lazy, shape=shape)
    assert not (tmp_path / "bare" / "card.json").exists()


def test_a_failing_tensor_leaves_nothing(tmp_path, lazy, shape):
    def fail(index):
        raise RuntimeError("disk full")

    name = "final_layer.linear.weight"
    tensors = lazy | {name: LazyTensor(lazy[name].shape, torch.float32, fail)}
    with pytest.raises(RuntimeError, match="disk full"):
        write_torch_dist(tmp_path / "new", tensors, shape=shape)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path, lazy, shape):
    (tmp_path / "new").mkdir()
    with pytest.raises(CheckpointError, match="new exists already"):
        write_torch_dist(tmp_path / "new", lazy, shape=shape)


def test_tensors_of_another_network_are_our_own_mistake(tmp_path, lazy, shape):
    name = "final_layer.linear.weight"
    with pytest.raises(AssertionError, match="not the network"):
        write_torch_dist(tmp_path / "a", {n: t for n, t in lazy.items() if n != name}, shape=shape)
    with pytest.raises(AssertionError, match=r"final_layer\.linear\.weight is \(1,\)"):
        tensors = lazy | {name: LazyTensor.of(torch.ones(1))}
        write_torch_dist(tmp_path / "a", tensors, shape=shape)
