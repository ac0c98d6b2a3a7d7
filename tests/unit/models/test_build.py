from dataclasses import replace
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLP
from torch import nn

from cosmos_nemo.catalog import DiTShape, Family
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.backend import Backend, TokenBlocks, fp8_backend, torch_backend
from cosmos_nemo.models.common.dit.spec import layer_spec, transformer_config
from cosmos_nemo.models.cosmos1_dit.model import Cosmos1DiT
from cosmos_nemo.parallel.groups import start_alone
from tests.fakes import CPU, TINY, FakeGroup

NEMO = Path(__file__).parents[2] / "golden" / "nemo_text_torch_dist"


def build(shape: DiTShape = TINY, *, dtype: torch.dtype = torch.float32) -> Cosmos1DiT:
    collection = start_alone(CPU).collection
    return build_network(shape, backend=torch_backend(), pg_collection=collection, device=CPU, dtype=dtype)


@pytest.mark.parametrize(
    "shape",
    [
        TINY,
        replace(TINY, takes_given_mask=True),
        replace(TINY, num_layers=1),
        replace(TINY, family=Family.PREDICT2, takes_given_mask=True),
        replace(TINY, family=Family.TOKEN_DECODER, token_vocab=50, token_dim=6),
    ],
)
def test_the_parameters_are_those_that_the_checkpoint_package_knows(shape: DiTShape) -> None:
    found = {name: tuple(parameter.shape) for name, parameter in build(shape).named_parameters()}
    assert found == parameter_shapes(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_has_storage_on_the_device_in_the_dtype_and_wants_no_gradient(
    dtype: torch.dtype,
) -> None:
    network = build(dtype=dtype)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert {tensor.device for tensor in tensors.values()} == {CPU}
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert not any(module.training for module in network.modules())
    assert (network.device, network.dtype) == (CPU, dtype)


def test_the_network_is_built_where_it_is_asked_to_be() -> None:
    collection = start_alone(CPU).collection
    meta = torch.device("meta")
    network = build_network(
        TINY, backend=torch_backend(), pg_collection=collection, device=meta, dtype=torch.float32
    )
    assert {parameter.device for parameter in network.parameters()} == {meta}


def test_the_network_takes_no_memory_before_it_is_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    before: set[torch.device] = set()
    to_empty = Cosmos1DiT.to_empty

    def noted(network: Cosmos1DiT, *, device: torch.device) -> Cosmos1DiT:
        before.update(parameter.device for parameter in network.parameters())
        return to_empty(network, device=device)

    monkeypatch.setattr(Cosmos1DiT, "to_empty", noted)
    build()
    assert before == {torch.device("meta")}


def test_nothing_in_the_state_but_the_parameters() -> None:
    """A buffer would be garbage after meta, and unknown to the checkpoint."""
    network = build()
    assert dict(network.named_buffers()) == {}
    states = {name for name in network.state_dict() if not name.endswith("_extra_state")}
    assert states == set(parameter_shapes(TINY))


def test_megatron_loads_a_nemo_checkpoint_into_the_network_with_the_same_bits_as_we_do() -> None:
    ours, theirs = build(), build()
    checkpoint = open_checkpoint(NEMO)
    load_into(ours, checkpoint=checkpoint, rules=network_rules(TINY, checkpoint))
    for parameter in theirs.parameters():
        parameter.fill_(float("nan"))
    state = theirs.sharded_state_dict(prefix="module.")
    wanted = {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}
    loaded = dist_checkpointing.load(wanted, str(NEMO / "weights"))
    assert len(loaded) == len(parameter_shapes(TINY))
    for name, parameter in ours.named_parameters():
        assert torch.equal(loaded[f"module.{name}"], parameter), name


def test_sharded_layers_are_stacked_under_one_name_with_the_layer_as_first_axis() -> None:
    state = build().sharded_state_dict(prefix="module.")
    parts = [state[f"module.decoder.layers.{i}.mlp.linear_fc2.weight"] for i in range(2)]
    assert {part.key for part in parts} == {"module.decoder.layers.mlp.linear_fc2.weight"}
    assert [part.global_shape for part in parts] == [(2, 64, 256)] * 2
    assert [part.global_offset for part in parts] == [(0, 0, 0), (1, 0, 0)]


class Column(nn.Module):
    pass


class Row(nn.Module):
    pass


class Norm(nn.Module):
    pass


class Core(nn.Module):
    pass


def test_every_block_of_a_layer_is_the_back_ends() -> None:
    backend = Backend(
        name="x", column_linear=Column, row_linear=Row, rms_norm=Norm, attention=Core, meta_config={}
    )
    layer = layer_spec(TINY, backend).submodules
    attention, cross = layer.full_self_attention.submodules, layer.cross_attention.submodules
    mlp = layer.mlp.submodules
    assert [attention.linear_qkv, cross.linear_q, cross.linear_kv, mlp.linear_fc1] == [Column] * 4
    assert [attention.linear_proj, cross.linear_proj, mlp.linear_fc2] == [Row] * 3
    assert [attention.norm, cross.norm] == [Norm] * 2
    assert [attention.core_attention, cross.core_attention] == [Core] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_megatrons_config_says_what_the_card_the_groups_and_the_back_end_say(dtype: torch.dtype) -> None:
    groups = ProcessGroupCollection(tp=FakeGroup(2, 0), cp=FakeGroup(3, 0))
    shape = replace(TINY, num_heads=8)
    config = transformer_config(shape, backend=torch_backend(), pg_collection=groups, dtype=dtype)
    assert (config.num_layers, config.hidden_size, config.ffn_hidden_size) == (2, 64, 256)
    assert (config.num_attention_heads, config.kv_channels) == (8, 8)
    assert (config.tensor_model_parallel_size, config.context_parallel_size) == (2, 3)
    assert (config.params_dtype, config.bf16) == (dtype, dtype == torch.bfloat16)
    assert not config.add_bias_linear and not config.gated_linear_unit
    assert (config.hidden_dropout, config.attention_dropout) == (0.0, 0.0)
    # What Transformer Engine's classes read, and what NeMo's own code got wrong (spec/nemo-cosmos1.md 0.10).
    assert (config.normalization, config.layernorm_epsilon) == ("RMSNorm", 1e-6)
    assert config.activation_func is nn.functional.gelu
    assert config.use_cpu_initialization and not config.perform_initialization


def test_what_the_videos_tokens_pass_may_be_other_blocks_but_not_the_texts_keys_and_values() -> None:
    class OwnColumn(nn.Module):
        pass

    class OwnRow(nn.Module):
        pass

    class OwnCore(nn.Module):
        pass

    class OwnMLP(MLP):
        pass

    backend = Backend(
        name="x",
        column_linear=Column,
        row_linear=Row,
        rms_norm=Norm,
        attention=Core,
        meta_config={},
        fp8=TokenBlocks(OwnColumn, OwnRow, OwnCore, mlp=OwnMLP),
    )
    layer = layer_spec(TINY, backend).submodules
    attention, cross = layer.full_self_attention.submodules, layer.cross_attention.submodules
    mlp = layer.mlp.submodules
    assert [attention.linear_qkv, cross.linear_q, mlp.linear_fc1] == [OwnColumn] * 3
    assert [attention.linear_proj, cross.linear_proj, mlp.linear_fc2] == [OwnRow] * 3
    assert (attention.core_attention, cross.core_attention) == (OwnCore, Core)
    assert layer.mlp.module is OwnMLP
    assert cross.linear_kv is Column
    assert [attention.norm, cross.norm] == [Norm] * 2


def test_a_network_in_8_bits_has_the_same_parameters() -> None:
    """So that one checkpoint fills both."""
    collection = start_alone(CPU).collection
    rounded = build_network(
        TINY, backend=fp8_backend(), pg_collection=collection, device=CPU, dtype=torch.bfloat16
    )
    plain = build(dtype=torch.bfloat16)
    found = {name: (value.shape, value.dtype) for name, value in rounded.named_parameters()}
    assert found == {name: (value.shape, value.dtype) for name, value in plain.named_parameters()}
    assert set(rounded.state_dict()) == set(plain.state_dict())
    assert dict(rounded.named_buffers()) == {}
