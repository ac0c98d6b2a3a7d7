import pytest
import torch

from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.reader.base import Checkpoint, LazyTensor, full_index


def test_an_index_is_made_whole_and_bounded():
    assert full_index((slice(1, None),), shape=(4, 3)) == (slice(1, 4), slice(0, 3))
    assert full_index((slice(-2, None), slice(0, 99)), shape=(4, 3)) == (slice(2, 4), slice(0, 3))


def test_an_empty_range_stays_inside_the_tensor():
    assert full_index((slice(3, 1),), shape=(4,)) == (slice(3, 3),)


def test_steps_and_too_many_axes_are_our_own_mistakes():
    with pytest.raises(AssertionError):
        full_index((slice(0, 4, 2),), shape=(4,))
    with pytest.raises(AssertionError):
        full_index((slice(None), slice(None)), shape=(4,))


def test_a_view_by_prefix_renames_and_leaves_out_the_rest():
    tensors = {"weights.a": LazyTensor.of(torch.ones(2)), "inputs.a": LazyTensor.of(torch.zeros(3))}
    checkpoint = Checkpoint("file", layout="safetensors", tensors=tensors)
    assert checkpoint.under("weights.").names() == ("a",)
    assert checkpoint.under("weights.").read("a").tolist() == [1, 1]


def test_all_layouts_hold_the_same_network(any_layout, network, read_network, assert_equal):
    assert_equal(read_network(any_layout), network)


def test_a_slice_of_any_layout_is_that_part_of_the_whole(any_layout):
    checkpoint = open_checkpoint(any_layout)
    for name in checkpoint.names():
        whole = checkpoint.read(name)
        assert tuple(whole.shape) == checkpoint.shape(name)
        assert whole.dtype == checkpoint.dtype(name)
        index = tuple(slice(size // 3, size - size // 4) for size in whole.shape)
        assert torch.equal(checkpoint.read(name, index), whole[index])
        assert torch.equal(checkpoint.read(name, index[:1]), whole[index[:1]])


def test_what_is_read_may_be_changed_without_changing_the_file(any_layout):
    before, again = open_checkpoint(any_layout), open_checkpoint(any_layout)
    name = before.names()[0]
    expected = again.read(name).clone()
    before.read(name).add_(1)
    assert torch.equal(open_checkpoint(any_layout).read(name), expected)


def test_the_layout_is_named(layouts):
    found = {name: open_checkpoint(path).layout for name, path in layouts.items()}
    assert found == {
        "zarr": "zarr",
        "torch_dist": "torch_dist",
        "torch_dist weights": "torch_dist",
        "torch_dist of ours": "torch_dist",
        "safetensors": "safetensors",
        "safetensors shards": "safetensors",
        "model.pt": "torch",
        "wrapped model.pt": "torch",
        "legacy model.pt": "torch",
        "TorchScript": "torchscript",
        "diffusers": "safetensors",
    }


def test_the_path_is_the_folder_of_the_files(golden):
    assert (
        open_checkpoint(golden / "nemo_text_torch_dist").path == golden / "nemo_text_torch_dist" / "weights"
    )
    assert open_checkpoint(golden / "nemo_text_zarr").path == golden / "nemo_text_zarr"
