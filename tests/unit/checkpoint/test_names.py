from dataclasses import replace
from math import prod

import pytest
import torch
from safetensors.torch import save_file

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.reader.base import Checkpoint

SEVEN = CARDS["Cosmos-1.0-Diffusion-7B-Text2World"].network
FOURTEEN = CARDS["Cosmos-1.0-Diffusion-14B-Text2World"].network


@pytest.fixture
def complaint(shape):
    """What network_rules says of a file with these tensors."""

    def of(tensors, asked=shape):
        lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
        with pytest.raises(CheckpointError) as caught:
            network_rules(asked, Checkpoint("model.pt", layout="torch", tensors=lazy))
        return str(caught.value)

    return of


def meta_checkpoint(shape):
    """A full-size file in the stacked layout, without its numbers."""
    tensors = {}
    for name, size in parameter_shapes(shape).items():
        stacked = name.startswith("decoder.layers.")
        key = "module." + (f"decoder.layers.{name.split('.', 3)[3]}" if stacked else name)
        tensors[key] = LazyTensor(
            (shape.num_layers, *size) if stacked else size, torch.bfloat16, lambda _: None
        )
    return Checkpoint("nemo", layout="zarr", tensors=tensors)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (SEVEN, 7_764_674_688),
        (replace(SEVEN, takes_given_mask=True), 7_764_691_072),
        (FOURTEEN, 15_116_496_000),
    ],
)
def test_parameters_are_as_many_as_published(shape, parameters):
    # spec/nemo-cosmos1.md 2.1; the count there has the 128 weights of the logvar head, which is never called.
    assert sum(map(prod, parameter_shapes(shape).values())) + 128 == parameters


def test_every_stored_tensor_is_used_or_known_to_be_of_no_use(any_layout, shape):
    checkpoint = open_checkpoint(any_layout)
    used = {name for rule in network_rules(shape, checkpoint).values() for name in rule.names}
    rest = {
        name.removeprefix("module.").removeprefix("net.") for name in checkpoint.names() if name not in used
    }
    assert rest <= {"logvar.0.freqs", "logvar.0.phases", "logvar.1.weight", "pos_embedder.seq"}


def test_training_states_and_counters_are_ignored(network, shape, tmp_path):
    extra = {"module.optimizer.state.a": torch.ones(1), "module.accum_count": torch.ones(1)}
    stored = {"module." + name: tensor.contiguous() for name, tensor in network.items()} | extra
    save_file(stored, tmp_path / "a.safetensors")
    assert len(network_rules(shape, open_checkpoint(tmp_path))) == len(network)


def test_the_networks_own_names_are_a_format_too(network, shape, tmp_path, read_network, assert_equal):
    torch.save({"state_dict": network}, tmp_path / "model.pt")
    assert_equal(read_network(tmp_path), network)


def test_a_file_without_prefix_is_read(predict1, network, tmp_path, read_network, assert_equal):
    torch.save({name.removeprefix("net."): t for name, t in predict1.items()}, tmp_path / "model.pt")
    assert_equal(read_network(tmp_path), network)


def test_a_video_network_is_read_with_its_own_shape(golden, shape):
    checkpoint = open_checkpoint(golden / "predict1_dit_video_tiny.safetensors").under("weights.")
    rules = network_rules(replace(shape, takes_given_mask=True), checkpoint)
    assert rules["x_embedder.proj.1.weight"].read(checkpoint).shape == (64, 72)


def test_a_renamed_tensor_is_named_with_the_nearest(complaint, predict1):
    tensors = dict(predict1)
    tensors["net.t_embedder.1.linear1.weight"] = tensors.pop("net.t_embedder.1.linear_1.weight")
    assert complaint(tensors) == (
        "model.pt: 1 of 50 tensors missing, first: net.t_embedder.1.linear_1.weight (nearest in the file: "
        "net.t_embedder.1.linear1.weight). Is it a Text2World network of 2 layers, width 64, 4 heads, "
        "text width 32, and complete?"
    )


def test_missing_tensors_are_counted(complaint, predict1):
    tensors = {name: t for name, t in predict1.items() if "block1.blocks.2.block" not in name}
    assert "model.pt: 2 of 50 tensors missing, first: net.blocks.block1.blocks.2.block.layer1" in complaint(
        tensors
    )


def test_a_tensor_too_many_is_named(complaint, predict1):
    said = complaint(predict1 | {"net.lora.a": torch.ones(1)})
    assert "1 of 51 tensors belong to another network, first: net.lora.a" in said


def test_one_tensor_of_another_shape_is_named(complaint, predict1):
    name = "net.t_embedder.1.linear_2.weight"
    said = complaint(predict1 | {name: torch.ones(64, 64)})
    assert f"1 of 50 tensors of another shape, first: {name} is (64, 64), not (192, 64)" in said


def test_a_video_network_in_place_of_a_text_network_is_said_to_be_one(complaint, golden):
    checkpoint = open_checkpoint(golden / "predict1_dit_video_tiny.safetensors").under("weights.")
    said = complaint({name: checkpoint.read(name) for name in checkpoint.names()})
    assert "net.x_embedder.proj.1.weight is (64, 72), not (64, 68)" in said
    assert "It looks like a Video2World network of 2 layers" in said


def test_a_text_network_in_place_of_a_video_network_is_said_to_be_one(complaint, predict1, shape):
    said = complaint(predict1, asked=replace(shape, takes_given_mask=True))
    assert "It looks like a Text2World network of 2 layers" in said
    assert "a Video2World network of 2 layers, width 64, 4 heads, text width 32 was asked for" in said


def test_another_released_size_is_named_with_the_way_out():
    with pytest.raises(CheckpointError) as caught:
        network_rules(SEVEN, meta_checkpoint(FOURTEEN))
    assert str(caught.value) == (
        "nemo: 23 of 23 tensors of another shape, first: module.x_embedder.proj.1.weight is (5120, 68), not "
        "(4096, 68). It looks like Cosmos-1.0-Diffusion-14B-Text2World (36 layers, width 5120), and "
        "Cosmos-1.0-Diffusion-7B-Text2World (28 layers, width 4096) was asked for: "
        "pass --model Cosmos-1.0-Diffusion-14B-Text2World"
    )


def test_a_tiny_network_in_place_of_a_released_one_is_described(golden):
    with pytest.raises(CheckpointError, match=r"It looks like a Text2World network of 2 layers.*card\.json"):
        network_rules(SEVEN, open_checkpoint(golden / "nemo_text_torch_dist"))


def test_a_file_of_another_kind_of_model_is_said_to_be_none(complaint):
    said = complaint({"encoder.conv_in.weight": torch.ones(1), "decoder.conv_in.weight": torch.ones(1)})
    assert said == (
        "model.pt holds no diffusion transformer of Cosmos: its 2 tensors are decoder.conv_in.weight, "
        "encoder.conv_in.weight"
    )


def test_a_stacked_tensor_without_its_layer_axis_is_a_sentence(golden, complaint):
    checkpoint = open_checkpoint(golden / "nemo_text_zarr")
    tensors = {name: checkpoint.read(name) for name in checkpoint.names()}
    name = "module.decoder.layers.mlp.linear_fc1.weight"
    assert f"{name} is (256, 64), not (2, 256, 64)" in complaint(tensors | {name: tensors[name][0]})
