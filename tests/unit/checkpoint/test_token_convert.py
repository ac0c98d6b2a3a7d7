"""convert.convert of autoregressive transformers."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint import convert as convert_module
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.convert import convert
from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.token_formats import token_rules_for
from cosmos_nemo.checkpoint.writer.token_transformer import RELEASED
from tests.tiny_tokens import BASE, SCALED, TEXT, random_weights


def released(shape: TokenShape) -> dict[str, Tensor]:
    """The tensors of a model.pt, bfloat16."""
    rules, weights = token_rules_for(shape, RELEASED), random_weights(shape)
    return {
        stored: part.bfloat16().contiguous()
        for name, rule in rules.items()
        for stored, part in zip(rule.names, rule.split(weights[name]), strict=True)
    }


def saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "model.pt")
    return folder / "model.pt"


@pytest.fixture(params=["base", "scaled", "text", "golden"])
def network(request: pytest.FixtureRequest, golden: Path) -> dict[str, Tensor]:
    """The tensors of a model.pt; the golden ones were written by the published code, float32."""
    if request.param == "golden":
        found = load_file(golden / "predict1_ar_transformer_crossattn.safetensors")
        return {
            name.replace("weights.", "model.", 1): tensor
            for name, tensor in found.items()
            if name.startswith("weights.")
        }
    return released({"base": BASE, "scaled": SCALED, "text": TEXT}[request.param])


@pytest.mark.parametrize("via", ["nemo", "safetensors"])
def test_a_model_pt_that_went_to_another_layout_and_back_has_the_same_bits(
    network: dict[str, Tensor], via: str, tmp_path: Path, assert_equal: Any
) -> None:
    source = saved(network, tmp_path / "in")
    convert(source, tmp_path / "via", to=via)
    convert(tmp_path / "via", tmp_path / "out", to="predict1")
    assert_equal(torch.load(tmp_path / "out" / "model.pt", weights_only=True), network)
    assert read_card_file(tmp_path / "via") == read_card_file(tmp_path / "out") != {}


def test_the_nemo_layout_has_megatrons_names_with_the_layers_stacked(tmp_path: Path) -> None:
    convert(saved(released(BASE), tmp_path / "in"), tmp_path / "out", to="nemo")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.layout == "torch_dist"
    assert checkpoint.shape("module.decoder.layers.mlp.linear_fc1.weight") == (2, 192, 64)
    assert checkpoint.shape("module.decoder.layers.self_attention.linear_qkv.layer_norm_weight") == (2, 64)


@pytest.mark.parametrize("to", ["nemo", "predict1", "safetensors"])
def test_what_was_read_is_not_kept(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model.pt is in memory once, as what is written; a second copy would be what was read."""
    source, read = saved(released(TEXT), tmp_path / "in"), []
    lazily = convert_module.lazy_network

    def watched(tensor: LazyTensor) -> LazyTensor:
        def load(index: tuple[slice, ...]) -> Tensor:
            assert sum(reference() is not None for reference in read) <= 1
            value = tensor.load(index).clone()
            read.append(weakref.ref(value))
            return value

        return LazyTensor(tensor.shape, tensor.dtype, load)

    def all_watched(*args: Any, **options: Any) -> dict[str, LazyTensor]:
        return {name: watched(tensor) for name, tensor in lazily(*args, **options).items()}

    monkeypatch.setattr(convert_module, "lazy_network", all_watched)
    convert(source, tmp_path / "out", to=to)
    assert len(read) == len(random_weights(TEXT))


def test_the_type_can_be_chosen(tmp_path: Path) -> None:
    convert(saved(released(BASE), tmp_path / "in"), tmp_path / "out", to="nemo", dtype=torch.float32)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {torch.float32}


def test_tables_and_states_of_other_software_are_left_out(tmp_path: Path, assert_equal: Any) -> None:
    tensors = released(BASE)
    more = {"model.rope.freqs": torch.ones(8), "model.layers.0.attention.cache_k": torch.ones(1, 2)}
    convert(saved(tensors | more, tmp_path / "in"), tmp_path / "out", to="predict1")
    assert_equal(torch.load(tmp_path / "out" / "model.pt", weights_only=True), tensors)


@pytest.mark.parametrize("to", ["predict2", "diffusers"])
def test_a_layout_without_such_a_network_is_refused(to: str, tmp_path: Path) -> None:
    source = saved(released(BASE), tmp_path / "in")
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "out", to=to)
    assert "is an autoregressive transformer, a network of 2 layers" in str(caught.value)
    assert f"--to nemo or predict1 or safetensors, not {to}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_the_other_kind_than_the_model_is_refused(tmp_path: Path, golden: Path) -> None:
    source = saved(released(BASE), tmp_path / "in")
    with pytest.raises(CheckpointError, match="Cosmos-Nano-Text2World is a diffusion model"):
        convert(source, tmp_path / "out", to="nemo", model="Cosmos-Nano-Text2World")
    with pytest.raises(
        CheckpointError, match=r"a Text2World network of 2.*Cosmos-Predict1-4B is autoregress"
    ):
        convert(golden / "nemo_text_zarr", tmp_path / "out", to="nemo", model="Cosmos-Predict1-4B")
    assert not (tmp_path / "out").exists()


def test_the_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    source = saved(released(BASE), tmp_path / "in")
    with pytest.raises(CheckpointError, match="It looks like a network of 2 layers, width 64"):
        convert(source, tmp_path / "out", to="nemo", model="Cosmos-Predict1-4B")
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = released(BASE)
    del tensors["model.layers.1.feed_forward.w3.weight"]
    with pytest.raises(CheckpointError, match=r"missing, first: model\.layers\.1\.feed_forward\.w3\.weight"):
        convert(saved(tensors, tmp_path / "in"), tmp_path / "out", to="nemo")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_cut_short_is_refused_in_every_layout(tmp_path: Path) -> None:
    source = saved(released(BASE), tmp_path / "in")
    convert(source, tmp_path / "nemo", to="nemo")
    for damaged in (source, tmp_path / "nemo" / "weights" / "__0_0.distcp"):
        with damaged.open("r+b") as file:
            file.truncate(damaged.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=damaged.name):
            convert(damaged.parent, tmp_path / "out", to="predict1")
    assert not (tmp_path / "out").exists()


def test_types_that_one_tensor_cannot_have_together_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    tensors = released(BASE)
    tensors["model.layers.1.attention.wk.weight"] = tensors["model.layers.1.attention.wk.weight"].float()
    source = saved(tensors, tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"wk\.weight in float32, which other layouts.*pass --dtype"):
        convert(source, tmp_path / "out", to="nemo")
    convert(source, tmp_path / "out", to="nemo", dtype=torch.bfloat16)


def test_no_moving_average_is_found_in_one(tmp_path: Path) -> None:
    source = saved(released(BASE), tmp_path / "in")
    with pytest.raises(CheckpointError, match="leave out --load_ema"):
        convert(source, tmp_path / "out", to="nemo", averaged=True)
