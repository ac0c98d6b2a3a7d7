from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.language_names import RotaryPairs, language_rules, language_shapes, native_rules
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.rules import Same

SHAPE = LanguageShape(
    num_layers=2,
    hidden_size=20,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=24,
    vocab_size=40,
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Under our names."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=draw) for name, size in language_shapes(SHAPE).items()}


@pytest.fixture(scope="module")
def native(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: part.contiguous()
        for ours, rule in native_rules(SHAPE).items()
        for name, part in zip(rule.names, rule.split(weights[ours]), strict=True)
    }


def held(tensors: dict[str, Tensor]) -> Checkpoint:
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
    return Checkpoint(Path("model.pt"), layout="torch", tensors=lazy)


def read(checkpoint: Checkpoint, shape: LanguageShape = SHAPE) -> dict[str, Tensor]:
    return {name: rule.read(checkpoint) for name, rule in language_rules(shape, checkpoint).items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_our_names_and_shapes_are_those_of_transformers() -> None:
    from transformers import MistralForCausalLM

    from cosmos_nemo.stages.language_model import mistral_config

    with torch.device("meta"):
        model = MistralForCausalLM(mistral_config(SHAPE))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == language_shapes(SHAPE)


def test_the_native_names_and_shapes_are_those_of_the_released_network() -> None:
    queries, keys, width, wide = 32, 16, 20, 24
    rules = native_rules(SHAPE)
    stored = {rule.names[0]: rule.stored_shape() for rule in rules.values()}
    layer = {
        "attention.wq.weight": (queries, width),
        "attention.wk.weight": (keys, width),
        "attention.wv.weight": (keys, width),
        "attention.wo.weight": (width, queries),
        "feed_forward.w1.weight": (wide, width),
        "feed_forward.w2.weight": (width, wide),
        "feed_forward.w3.weight": (wide, width),
        "attention_norm.weight": (width,),
        "ffn_norm.weight": (width,),
    }
    top = {"tok_embeddings.weight": (40, width), "norm.weight": (width,), "output.weight": (40, width)}
    assert stored == top | {f"layers.{i}.{name}": size for i in (0, 1) for name, size in layer.items()}
    assert rules["model.layers.1.mlp.gate_proj.weight"].names == ("layers.1.feed_forward.w1.weight",)
    assert rules["model.layers.1.mlp.down_proj.weight"].names == ("layers.1.feed_forward.w2.weight",)


def test_native_names_come_back_as_ours(weights: dict[str, Tensor], native: dict[str, Tensor]) -> None:
    assert_equal(read(held(native)), weights)


def test_only_queries_and_keys_change_their_order(
    weights: dict[str, Tensor], native: dict[str, Tensor]
) -> None:
    changed = {
        ours
        for ours, rule in native_rules(SHAPE).items()
        if not torch.equal(weights[ours], native[rule.names[0]])
    }
    assert changed == {f"model.layers.{i}.self_attn.{x}_proj.weight" for i in (0, 1) for x in "qk"}


def test_neighbouring_rows_of_a_head_come_to_lie_half_a_head_apart() -> None:
    rule = RotaryPairs(names=("wq",), shape=(8, 1), head_dim=4)
    rows = torch.arange(8.0)[:, None]
    assert rule.read(held({"wq": rows})).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rule.split(rule.read(held({"wq": rows})))[0].flatten().tolist() == rows.flatten().tolist()


def test_a_part_of_whole_heads_is_that_part_of_the_whole() -> None:
    rule = RotaryPairs(names=("wq",), shape=(12, 5), head_dim=4)
    checkpoint = held({"wq": torch.randn(12, 5)})
    index = (slice(4, 12), slice(1, 3))
    assert torch.equal(rule.read(checkpoint, index), rule.read(checkpoint)[index])
    with pytest.raises(AssertionError, match="a head is cut"):
        rule.read(checkpoint, (slice(2, 6),))


@pytest.mark.parametrize("layout", ["bare", "below model.", "in a dictionary", "with states of others"])
def test_a_released_file_is_read_in_every_layout_that_its_loader_takes(
    layout: str, weights: dict[str, Tensor], native: dict[str, Tensor], tmp_path: Path
) -> None:
    content: dict[str, object] = dict(native)
    if layout == "below model.":
        content = {f"model.{name}": tensor for name, tensor in native.items()}
    elif layout == "in a dictionary":
        content = {"model": native}
    elif layout == "with states of others":
        content["layers.0.attention._extra_state"] = torch.zeros(3)
    torch.save(content, tmp_path / "model.pt")
    assert_equal(read(open_checkpoint(tmp_path / "model.pt")), weights)


def test_the_names_of_transformers_are_read_as_they_are(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert {type(rule) for rule in language_rules(SHAPE, checkpoint).values()} == {Same}
    assert_equal(read(checkpoint), weights)


def test_a_missing_tensor_is_named_with_the_nearest_in_the_file(native: dict[str, Tensor]) -> None:
    tensors = dict(native)
    tensors["layers.1.attention.vw.weight"] = tensors.pop("layers.1.attention.wv.weight")
    with pytest.raises(
        CheckpointError,
        match=r"1 of 21 tensors missing, first: layers\.1\.attention\.wv\.weight "
        r"\(nearest in the file: layers\.1\.attention\.vw\.weight\)",
    ):
        language_rules(SHAPE, held(tensors))


def test_an_unexpected_tensor_is_named(native: dict[str, Tensor]) -> None:
    tensors = native | {"layers.0.attention.wq.bias": torch.zeros(32)}
    with pytest.raises(CheckpointError, match=r"1 of 22 .* first: layers\.0\.attention\.wq\.bias"):
        language_rules(SHAPE, held(tensors))


def test_a_tensor_of_another_shape_is_named_with_both(native: dict[str, Tensor]) -> None:
    tensors = native | {"output.weight": torch.zeros(39, 20)}
    with pytest.raises(CheckpointError, match=r"output\.weight is \(39, 20\), not \(40, 20\)"):
        language_rules(SHAPE, held(tensors))


def test_a_model_of_another_depth_is_refused(native: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"9 of 21 tensors belong to another network.*1 layers"):
        language_rules(replace(SHAPE, num_layers=1), held(native))
    with pytest.raises(CheckpointError, match=r"9 of 30 tensors missing.*3 layers"):
        language_rules(replace(SHAPE, num_layers=3), held(native))


def test_a_file_of_another_kind_is_refused_with_some_of_its_names() -> None:
    with pytest.raises(CheckpointError, match="holds no Mistral language model: its 1 tensors are net"):
        language_rules(SHAPE, held({"net.x": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="none at all"):
        language_rules(SHAPE, held({}))
