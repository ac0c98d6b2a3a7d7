import logging

import pytest
import torch
from torch import nn

from cosmos_nemo.checkpoint.load import load_into, rank_index
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.reader import LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.reader.base import Checkpoint

COLUMN = ("linear_qkv", "linear_q", "linear_kv", "linear_fc1")
ROW = ("linear_proj", "linear_fc2")


def split_axis(name):
    """Which axis tensor parallelism splits, said a second time."""
    parts = name.split(".")
    if parts[0] != "decoder":
        return None
    return 0 if parts[-2] in COLUMN else 1 if parts[-2] in ROW else None


class Network(nn.Module):
    """Only parameters, with the network's names and one rank's shapes."""

    def __init__(self, shape, *, size=1, dtype=torch.float32, device="cpu"):
        super().__init__()
        for name, whole in parameter_shapes(shape).items():
            own = [n // size if axis == split_axis(name) else n for axis, n in enumerate(whole)]
            module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.full(own, 9.0, dtype=dtype, device=device)))


def loaded(path, shape, *, rank=0, size=1, dtype=torch.float32):
    checkpoint = open_checkpoint(path)
    module = Network(shape, size=size, dtype=dtype)
    load_into(
        module,
        checkpoint=checkpoint,
        rules=network_rules(shape, checkpoint),
        tensor_parallel_rank=rank,
        tensor_parallel_size=size,
    )
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def counting(checkpoint):
    """The same checkpoint, and a dict that counts the numbers read of each tensor."""
    counts = dict.fromkeys(checkpoint.names(), 0)

    def count(name):
        def load(index):
            part = checkpoint.read(name, index)
            counts[name] += part.numel()
            return part

        return LazyTensor(checkpoint.shape(name), checkpoint.dtype(name), load)

    tensors = {name: count(name) for name in checkpoint.names()}
    return Checkpoint(checkpoint.path, layout=checkpoint.layout, tensors=tensors), counts


def test_every_layout_fills_the_network(any_layout, shape, network, assert_equal):
    assert_equal(loaded(any_layout, shape), network)


@pytest.mark.parametrize("size", [2, 4])
def test_the_parts_of_all_ranks_make_the_whole(any_layout, shape, network, size):
    parts = [loaded(any_layout, shape, rank=rank, size=size) for rank in range(size)]
    for name, whole in network.items():
        axis = split_axis(name)
        if axis is None:
            assert all(torch.equal(part[name], whole) for part in parts)
        else:
            assert torch.equal(torch.cat([part[name] for part in parts], dim=axis), whole)


@pytest.mark.parametrize("layout", ["zarr", "torch_dist", "safetensors", "diffusers"])
def test_a_rank_reads_only_its_part(layouts, shape, network, layout):
    checkpoint, counts = counting(open_checkpoint(layouts[layout]))
    rules = network_rules(shape, checkpoint)
    module = Network(shape, size=4)
    load_into(module, checkpoint=checkpoint, rules=rules, tensor_parallel_rank=1, tensor_parallel_size=4)
    assert sum(counts.values()) <= sum(parameter.numel() for parameter in module.parameters())
    split = [name for name in network if split_axis(name) is not None]
    stored = {source for name in split for source in rules[name].names}
    wholes = sum(network[name].numel() for name in split)
    assert sum(counts[name] for name in stored) == wholes // 4


def test_numbers_are_converted_to_the_parameters_type(layouts, shape, network):
    half = loaded(layouts["zarr"], shape, dtype=torch.bfloat16)
    assert all(torch.equal(half[name], tensor.to(torch.bfloat16)) for name, tensor in network.items())


def test_the_same_parameters_are_kept_and_still_train(layouts, shape):
    module, checkpoint = Network(shape), open_checkpoint(layouts["zarr"])
    before = dict(module.named_parameters())
    load_into(module, checkpoint=checkpoint, rules=network_rules(shape, checkpoint))
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in module.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_number_is_a_warning_that_names_its_tensor(network, shape, tmp_path, caplog, value):
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    broken = network[name].clone()
    broken[3, 5:8] = value
    torch.save(network | {name: broken}, tmp_path / "model.pt")
    with caplog.at_level(logging.WARNING):
        loaded(tmp_path, shape)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} has 3 NaN or infinite values: expect a broken video"
    ]


def test_whole_numbers_warn_of_nothing(layouts, shape, caplog):
    loaded(layouts["zarr"], shape)
    assert not caplog.records


def test_a_parameter_without_rule_or_the_other_way_round_is_our_own_mistake(layouts, shape):
    checkpoint = open_checkpoint(layouts["zarr"])
    rules = network_rules(shape, checkpoint)
    module = Network(shape)
    module.register_parameter("extra", nn.Parameter(torch.ones(1)))
    with pytest.raises(AssertionError, match="extra"):
        load_into(module, checkpoint=checkpoint, rules=rules)
    with pytest.raises(AssertionError, match=r"affline_norm\.weight"):
        short = {name: rule for name, rule in rules.items() if name != "affline_norm.weight"}
        load_into(Network(shape), checkpoint=checkpoint, rules=short)


def test_a_meta_parameter_and_a_wrong_split_are_our_own_mistakes(layouts, shape):
    checkpoint = open_checkpoint(layouts["zarr"])
    rules = network_rules(shape, checkpoint)
    with pytest.raises(AssertionError, match="has no storage"):
        load_into(Network(shape, device="meta"), checkpoint=checkpoint, rules=rules)
    with pytest.raises(AssertionError, match="its part"):
        load_into(Network(shape, size=2), checkpoint=checkpoint, rules=rules)


def test_only_the_layers_linears_are_split():
    assert rank_index("final_layer.linear.weight", shape=(64, 64), rank=1, size=2) == (slice(0, 64),) * 2
    name = "decoder.layers.0.adaLN.adaLN_modulation.2.weight"
    assert rank_index(name, shape=(576, 48), rank=1, size=2) == (slice(0, 576), slice(0, 48))
    name = "decoder.layers.0.cross_attention.linear_kv.weight"
    assert rank_index(name, shape=(128, 32), rank=1, size=2) == (slice(64, 128), slice(0, 32))
    name = "decoder.layers.0.cross_attention.linear_proj.weight"
    assert rank_index(name, shape=(64, 64), rank=1, size=2) == (slice(0, 64), slice(32, 64))
