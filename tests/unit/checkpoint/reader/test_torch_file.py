import collections
import io

import pytest
import torch

from cosmos_nemo.checkpoint.formats import network_names
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

A, B = torch.ones(2, 3), torch.zeros(4)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict"])
def test_a_training_checkpoint_is_unwrapped(tmp_path, wrapper):
    path = saved(tmp_path / "model.pt", {wrapper: {"a": A}, "iteration": 3, "rng": B})
    assert open_checkpoint(path).names() == ("a",)


def test_averages_replace_what_low_rank_post_training_trained_and_nothing_else(tmp_path):
    """Upstream takes the averages of a LoRA run only; of a full one it takes the model."""
    model = {"net.a_lora.net.0.weight": A, "net.b": B}
    averages = {"net-a_lora-net-0-weight": A + 1, "net-b": B + 1, "num_updates": 5}
    checkpoint = open_checkpoint(saved(tmp_path / "model.pt", {"model": model, "ema": averages}))
    assert checkpoint.names() == tuple(model)
    assert torch.equal(checkpoint.read("net.a_lora.net.0.weight"), A + 1)
    assert torch.equal(checkpoint.read("net.b"), B)


@pytest.mark.parametrize("state", [io.BytesIO(b"state"), io.BytesIO(), None, torch.zeros(0)])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_states_of_transformer_engine_are_no_tensors_of_the_network(tmp_path, zipped, wrapped, state):
    tensors = {"net.a": A, "net.core._extra_state": state}
    content = {"model": tensors} if wrapped else tensors
    path = saved(tmp_path / "model.pt", content, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(path)
    assert network_names(checkpoint) == ["net.a"]
    assert torch.equal(checkpoint.read("net.a"), A)


def test_averages_of_a_full_post_training_change_nothing(tmp_path):
    content = {"model": {"net.a": A}, "ema": {"net-a": A + 1, "net-alora-b": B, "lora": B}}
    checkpoint = open_checkpoint(saved(tmp_path / "model.pt", content))
    assert checkpoint.names() == ("net.a",)
    assert torch.equal(checkpoint.read("net.a"), A)


def test_what_is_no_tensor_is_dropped(tmp_path):
    path = saved(tmp_path / "model.pt", {"a": A, "_extra_state": None, "step": 3})
    assert open_checkpoint(path).names() == ("a",)


def test_an_ordered_dict_of_parameters_is_read(tmp_path):
    state = collections.OrderedDict(torch.nn.Linear(2, 2).state_dict())
    assert open_checkpoint(saved(tmp_path / "model.pt", state)).names() == ("bias", "weight")


def test_a_folder_with_model_pt_is_that_file(tmp_path):
    saved(tmp_path / "model.pt", {"a": A})
    assert open_checkpoint(tmp_path).path == tmp_path / "model.pt"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_named(tmp_path, zipped):
    path = saved(tmp_path / "model.pt", {"a": A}, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"model\.pt is truncated or damaged"):
        open_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_foreign_class_is_refused_and_named(tmp_path, zipped):
    content = {"a": A, "counts": collections.UserDict()}
    path = saved(tmp_path / "model.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds an object of collections\.UserDict"):
        open_checkpoint(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"is no file of torch\.save: it starts with the bytes b've'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [A, [A], {"a": 1}, {"model": {}}])
def test_a_file_without_named_tensors_is_no_checkpoint(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"holds no named tensors, but a"):
        open_checkpoint(saved(tmp_path / "model.pt", content))


def test_a_truncated_torchscript_file_is_named(tmp_path, layouts):
    path = tmp_path / "decoder.jit"
    path.write_bytes(layouts["TorchScript"].read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=r"decoder\.jit is truncated or damaged"):
        open_checkpoint(path)
