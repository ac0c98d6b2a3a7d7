from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.load import load_into, rank_index
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.rules import Rule
from cosmos_nemo.checkpoint.token_formats import (
    Stored,
    TokenFormat,
    detect_token_format,
    expected_tensors,
    token_parameter_shapes,
    token_rules_for,
)
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.checkpoint.token_sizes import KNOWN_SHAPES

SHAPE = TokenShape(
    num_layers=2,
    hidden_size=20,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    ffn_hidden_size=24,
    vocab_size=64,
    latent_THW=(2, 2, 2),
    text_dim=10,
)
FORMATS = {
    "released": Stored(TokenFormat.RELEASED, "model."),
    "bare": Stored(TokenFormat.RELEASED, ""),
    "nemo": Stored(TokenFormat.NEMO, "module."),
    "local": Stored(TokenFormat.NEMO, "", fused_norms=False),
}
GROUPS, GROUP, HEAD = 4, 2, 6


@pytest.fixture(params=FORMATS)
def stored(request: pytest.FixtureRequest) -> Stored:
    return FORMATS[request.param]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Under our names."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=draw) for name, size in token_parameter_shapes(SHAPE).items()}


def split(weights: dict[str, Tensor], rules: dict[str, Rule]) -> dict[str, Tensor]:
    """The tensors of a file; those that hold all layers joined along the first axis."""
    pieces: dict[str, list[Tensor]] = {}
    for ours, rule in rules.items():
        for name, part in zip(rule.names, rule.split(weights[ours]), strict=True):
            pieces.setdefault(name, []).append(part)
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def held(tensors: dict[str, Tensor]) -> Checkpoint:
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
    return Checkpoint(Path("model.pt"), layout="torch", tensors=lazy)


def counting(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, int]]:
    """The same checkpoint, and how many numbers were read of each tensor."""
    counts = dict.fromkeys(checkpoint.names(), 0)

    def load(name: str, index: tuple[slice, ...]) -> Tensor:
        part = checkpoint.read(name, index)
        counts[name] += part.numel()
        return part

    tensors = {
        name: LazyTensor(checkpoint.shape(name), torch.float32, lambda index, name=name: load(name, index))  # type: ignore[misc]
        for name in checkpoint.names()
    }
    return Checkpoint(checkpoint.path, layout="torch", tensors=tensors), counts


def test_a_file_of_any_format_is_read_into_our_names_with_the_same_bits(
    weights: dict[str, Tensor], stored: Stored
) -> None:
    checkpoint = held(split(weights, token_rules_for(SHAPE, stored)))
    assert detect_token_format(checkpoint) == (stored.format_, stored.prefix, stored is FORMATS["nemo"])
    rules = token_rules(SHAPE, checkpoint)
    assert rules.keys() == weights.keys()
    for name, rule in rules.items():
        assert torch.equal(rule.read(checkpoint), weights[name]), name


def test_expected_tensors_are_those_that_splitting_makes(weights: dict[str, Tensor], stored: Stored) -> None:
    rules = token_rules_for(SHAPE, stored)
    found = {name: tuple(tensor.shape) for name, tensor in split(weights, rules).items()}
    assert found == expected_tensors(rules)


def test_the_released_names_are_those_of_the_specification() -> None:
    names = set(expected_tensors(token_rules_for(replace(SHAPE, num_layers=1), FORMATS["released"])))
    layer = [
        *("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"),
        *("attention.q_norm", "attention.k_norm", "ffn_norm"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "cross_attention_norm"),
        *(f"cross_attention.{part}" for part in ("wq", "wk", "wv", "wo", "q_norm", "k_norm")),
    ]
    top = {f"model.{name}.weight" for name in ("tok_embeddings", "norm", "output")}
    assert names == top | {f"model.layers.0.{name}.weight" for name in layer}


def test_nemos_norms_lie_in_the_linears_after_them_and_its_layers_are_stacked() -> None:
    shapes = expected_tensors(token_rules_for(SHAPE, FORMATS["nemo"]))
    assert shapes["module.decoder.layers.self_attention.linear_qkv.layer_norm_weight"] == (2, 20)
    assert shapes["module.decoder.layers.mlp.linear_fc1.layer_norm_weight"] == (2, 20)
    assert shapes["module.decoder.layers.mlp.linear_fc1.weight"] == (2, 48, 20)
    assert shapes["module.decoder.final_layernorm.weight"] == (20,)
    assert not any("input_layernorm" in name for name in shapes)


def test_each_group_has_its_queries_then_its_key_then_its_value(weights: dict[str, Tensor]) -> None:
    tensors = split(weights, token_rules_for(SHAPE, FORMATS["bare"]))
    q, k, v = (tensors[f"layers.1.attention.w{part}.weight"] for part in "qkv")
    fused = weights["decoder.layers.1.self_attention.linear_qkv.weight"]
    at = 0
    for g in range(GROUPS):
        for part, rows in ((q, GROUP * HEAD), (k, HEAD), (v, HEAD)):
            assert torch.equal(fused[at : at + rows], part[g * rows : (g + 1) * rows])
            at += rows
    k, v = (tensors[f"layers.1.cross_attention.w{part}.weight"] for part in "kv")
    fused = weights["decoder.layers.1.cross_attention.linear_kv.weight"]
    for g in range(GROUPS):
        own = slice(g * HEAD, (g + 1) * HEAD)
        assert torch.equal(fused[2 * g * HEAD :][: 2 * HEAD], torch.cat([k[own], v[own]]))


def test_the_mlps_first_half_is_w1_and_its_second_w3(weights: dict[str, Tensor]) -> None:
    tensors = split(weights, token_rules_for(SHAPE, FORMATS["bare"]))
    fused = weights["decoder.layers.0.mlp.linear_fc1.weight"]
    w1, w3 = (tensors[f"layers.0.feed_forward.{part}.weight"] for part in ("w1", "w3"))
    assert torch.equal(fused, torch.cat([w1, w3]))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_reads_its_own_part_and_nothing_else(
    weights: dict[str, Tensor], stored: Stored, ranks: int
) -> None:
    file = held(split(weights, token_rules_for(SHAPE, stored)))
    for rank in range(ranks):
        checkpoint, counts = counting(file)
        rules = token_rules(SHAPE, checkpoint, tensor_parallel_size=ranks)
        network = nn.Module()
        expected = {}
        for name, whole in weights.items():
            expected[name] = own_part(name, whole, rank=rank, ranks=ranks)
            register(network, name, torch.empty_like(expected[name]))
        load_into(
            network,
            checkpoint=checkpoint,
            rules=rules,
            tensor_parallel_rank=rank,
            tensor_parallel_size=ranks,
        )
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, expected[name]), name
        assert sum(counts.values()) == sum(part.numel() for part in expected.values())


def own_part(name: str, whole: Tensor, *, rank: int, ranks: int) -> Tensor:
    """What Megatron gives a rank, said a second time."""
    if "mlp.linear_fc1" in name:
        return torch.cat([half.chunk(ranks)[rank] for half in whole.chunk(2)])
    if any(part in name for part in ("linear_q", "linear_kv", "word_embeddings", "output_layer")):
        return whole.chunk(ranks)[rank].clone()
    if any(part in name for part in ("linear_proj", "linear_fc2")):
        return whole.chunk(ranks, dim=1)[rank].clone()
    return whole


def register(module: nn.Module, name: str, value: Tensor) -> None:
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_parameter(last, nn.Parameter(value, requires_grad=False))


@pytest.mark.parametrize("stored", FORMATS.values(), ids=FORMATS)
def test_rank_by_rank_the_mlps_tensor_is_split_back_too(weights: dict[str, Tensor], stored: Stored) -> None:
    """Of the tensor that two ranks hold, in their order."""
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    of_ranks = torch.cat([own_part(name, weights[name], rank=rank, ranks=2) for rank in range(2)])
    one, two = (token_rules_for(SHAPE, stored, tensor_parallel_size=ranks)[name] for ranks in (1, 2))
    for whole, again in zip(one.split(weights[name]), two.split(of_ranks), strict=True):
        assert torch.equal(whole, again)


@pytest.mark.parametrize("name", ["embedding.word_embeddings.weight", "output_layer.weight"])
def test_the_vocabulary_is_split_by_rows(name: str) -> None:
    assert rank_index(name, shape=(64, 20), rank=1, size=4) == (slice(16, 32), slice(0, 20))


def test_what_no_network_needs_is_passed_over(weights: dict[str, Tensor], stored: Stored) -> None:
    tensors = split(weights, token_rules_for(SHAPE, stored))
    for name in (
        "module.decoder.layers.self_attention.linear_qkv._extra_state",
        "model.layers.0.attention.cache_k",
        "model.rope.cos_cached",
        "module.rotary_pos_emb.inv_freq",
        "optimizer.state.exp_avg.module.output_layer.weight",
    ):
        tensors[name] = torch.zeros(3)
    token_rules(SHAPE, held(tensors))


# What is not the network


def test_a_missing_tensor_is_named_with_the_nearest_and_the_model(weights: dict[str, Tensor]) -> None:
    tensors = split(weights, token_rules_for(SHAPE, FORMATS["released"]))
    tensors["model.layers.1.attention.wo2.weight"] = tensors.pop("model.layers.1.attention.wo.weight")
    with pytest.raises(CheckpointError) as caught:
        token_rules(SHAPE, held(tensors))
    assert "missing, first: model.layers.1.attention.wo.weight (nearest in the file: model.layers.1." in str(
        caught.value
    )
    assert "Is it a network of 2 layers, width 20, 8 and 4 heads of 6, 64 tokens, text width 10" in str(
        caught.value
    )


def test_an_unexpected_tensor_is_named(weights: dict[str, Tensor], stored: Stored) -> None:
    tensors = split(weights, token_rules_for(SHAPE, stored))
    tensors["model.layers.0.attention.bias"] = torch.zeros(3)
    with pytest.raises(
        CheckpointError, match=r"belong to another network, first: model\.layers\.0\.attention\.bias"
    ):
        token_rules(SHAPE, held(tensors))


@pytest.mark.parametrize("axis", [0, 1])
def test_keys_of_another_shape_are_named(weights: dict[str, Tensor], axis: int) -> None:
    tensors = split(weights, token_rules_for(SHAPE, FORMATS["released"]))
    name = "model.layers.1.attention.wk.weight"
    tensors[name] = torch.cat([tensors[name]] * 2, dim=axis)
    with pytest.raises(CheckpointError, match=rf"1 of \d+ tensors of another shape, first: {name} is"):
        token_rules(SHAPE, held(tensors))


def empty(shape: TokenShape, stored: Stored) -> Checkpoint:
    """A file that has the names and shapes, and whose tensors cannot be read."""

    def refuse(index: tuple[slice, ...]) -> Tensor:
        raise AssertionError("read")

    shapes = expected_tensors(token_rules_for(shape, stored))
    lazy = {name: LazyTensor(size, torch.bfloat16, refuse) for name, size in shapes.items()}
    return Checkpoint(Path("model.pt"), layout="torch", tensors=lazy)


@pytest.mark.parametrize("stored", [FORMATS["released"], FORMATS["nemo"]], ids=["released", "nemo"])
@pytest.mark.parametrize(
    ("file", "asked"), [("12B", "4B"), ("4B", "12B"), ("5B", "4B"), ("4B", "5B"), ("13B", "12B")]
)
def test_another_released_model_is_recognised(file: str, asked: str, stored: Stored) -> None:
    with pytest.raises(
        CheckpointError, match=rf"It looks like the {file} \(.*and the {asked} \(.*was asked for"
    ):
        token_rules(KNOWN_SHAPES[asked], empty(KNOWN_SHAPES[file], stored))


def test_a_language_model_in_the_same_names_is_refused(weights: dict[str, Tensor]) -> None:
    """A prompt upsampler's model.pt, whose heads have no norms."""
    tensors = split(weights, token_rules_for(SHAPE, FORMATS["released"]))
    without = {
        name: t for name, t in tensors.items() if "_norm.weight" not in name or "attention_norm" in name
    }
    with pytest.raises(CheckpointError, match=r"missing, first: .*q_norm"):
        token_rules(SHAPE, held(without))


def test_a_file_of_something_else_is_refused_with_what_it_holds() -> None:
    with pytest.raises(
        CheckpointError, match=r"no autoregressive transformer of Cosmos: its 1 tensors are net\.a"
    ):
        token_rules(SHAPE, held({"net.a": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="none at all"):
        detect_token_format(held({}))
