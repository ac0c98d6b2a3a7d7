"""The diffusion decoder's network in every layout that the others are stored in."""

from dataclasses import replace
from math import prod

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.catalog import CARDS, DIFFUSION_DECODER_7B, DiTShape, Family
from cosmos_nemo.checkpoint.aux_vars import read_generic_text, write_aux_vars
from cosmos_nemo.checkpoint.convert import convert
from cosmos_nemo.checkpoint.identity import identify
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.reader.base import Checkpoint
from cosmos_nemo.checkpoint.sizes import infer_shape

SHAPE = DiTShape(
    family=Family.TOKEN_DECODER,
    num_layers=2,
    hidden_size=72,
    num_heads=2,
    ffn_hidden_size=288,
    adaln_lora_dim=12,
    text_dim=24,
    latent_channels=4,
    token_vocab=300,
    token_dim=6,
)


@pytest.fixture(scope="module")
def released(request):
    """Upstream name -> tensor, as the decoder's model.pt holds them, with what a loader must ignore."""
    golden = request.path.parents[2] / "golden" / "predict1_ar_diffusion_decoder.safetensors"
    weights = {
        name.replace("weights.", "net."): tensor
        for name, tensor in load_file(golden).items()
        if name.startswith("weights.")
    }
    logvar = {"logvar.0.freqs": 128, "logvar.0.phases": 128}
    return weights | {name: torch.ones(size) for name, size in logvar.items()}


@pytest.fixture
def folder(released, tmp_path):
    """As the repository is downloaded."""
    path = tmp_path / "decoder"
    path.mkdir()
    torch.save(released, path / "model.pt")
    write_aux_vars(path, torch.ones(1, 5, 24))
    return path


def complaint(tensors, asked=SHAPE):
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError) as caught:
        network_rules(asked, Checkpoint("model.pt", layout="torch", tensors=lazy))
    return str(caught.value)


def test_the_released_decoder_has_the_sizes_of_its_file():
    shapes = parameter_shapes(DIFFUSION_DECODER_7B)
    assert shapes["x_embedder.proj.1.weight"] == (4096, 196)
    assert shapes["token_embedder.weight"] == (64000, 32)
    assert not any(name.startswith("extra_pos_embedder") for name in shapes)
    text2world = parameter_shapes(CARDS["Cosmos-Predict1-7B-Text2World"].network)
    tables, channels = (120 + 120 + 128) * 4096, 32 * 4 * 4096
    assert sum(map(prod, shapes.values())) == (
        sum(map(prod, text2world.values())) - tables + channels + 64000 * 32
    )


def test_the_shapes_in_a_file_tell_that_it_is_a_decoder_and_of_which_size(folder):
    like = CARDS["Cosmos-1.0-Diffusion-7B-Text2World"].network
    found = infer_shape(open_checkpoint(folder), like=like)
    names = ("family", "token_vocab", "token_dim", "takes_given_mask", "num_layers", "latent_channels")
    assert [getattr(found, name) for name in names] == [Family.TOKEN_DECODER, 300, 6, False, 2, 4]


def test_another_network_has_no_tokens(golden, shape):
    found = infer_shape(open_checkpoint(golden / "nemo_text_zarr"), like=DIFFUSION_DECODER_7B)
    assert (found.family, found.token_vocab, found.token_dim) == (Family.COSMOS1, 0, 0)


@pytest.mark.parametrize("to", ["nemo", "predict1", "safetensors"])
def test_every_layout_holds_the_same_numbers(folder, tmp_path, to, read_network, assert_equal):
    convert(folder, tmp_path / "new", to=to)
    network = read_network(tmp_path / "new", SHAPE)
    assert network.keys() == parameter_shapes(SHAPE).keys()
    assert_equal(network, read_network(folder, SHAPE))


def test_layers_are_stacked_in_nemos_layout_and_the_embedding_is_whole(folder, tmp_path):
    convert(folder, tmp_path / "nemo", to="nemo")
    stored = open_checkpoint(tmp_path / "nemo")
    assert stored.shape("module.token_embedder.weight") == (300, 6)
    assert stored.shape("module.decoder.layers.mlp.linear_fc1.weight") == (2, 288, 72)


def test_through_nemo_and_back_is_a_model_pt_of_the_same_names_and_numbers(
    folder, released, tmp_path, assert_equal
):
    convert(folder, tmp_path / "nemo", to="nemo")
    convert(tmp_path / "nemo", tmp_path / "back", to="predict1")
    back = torch.load(tmp_path / "back" / "model.pt", weights_only=True)
    assert_equal(back, {name: tensor for name, tensor in released.items() if "logvar" not in name})


def test_the_generic_text_goes_with_a_converted_decoder(folder, tmp_path):
    convert(folder / "model.pt", tmp_path / "nemo", to="nemo")
    assert torch.equal(read_generic_text(tmp_path / "nemo", text_dim=24), torch.ones(1, 5, 24))
    (folder / "aux_vars.pt").unlink()
    convert(folder / "model.pt", tmp_path / "without", to="nemo")
    assert not (tmp_path / "without" / "aux_vars.pt").exists()


@pytest.mark.parametrize("to", ["diffusers", "predict2"])
def test_a_layout_that_has_no_such_network_is_refused(folder, tmp_path, to):
    with pytest.raises(CheckpointError, match=f"a diffusion decoder of 2 layers.*--to predict1, not {to}"):
        convert(folder, tmp_path / "new", to=to)
    assert not (tmp_path / "new").exists()


def test_its_sizes_go_into_the_card_json_of_a_conversion(folder):
    identity = identify(open_checkpoint(folder))
    assert identity.base.network.family is Family.TOKEN_DECODER
    assert identity.name == "the diffusion decoder of Cosmos-Predict1-4B"
    network = identity.overrides["network"]
    assert (network["token_vocab"], network["token_dim"]) == (300, 6)


def test_a_decoder_without_its_embedding_is_named(released):
    part = {name: tensor for name, tensor in released.items() if "token_embedder" not in name}
    said = complaint(part)
    assert "1 of 48 tensors missing, first: net.token_embedder.weight" in said
    assert "Is it a diffusion decoder of 2 layers, width 72, 2 heads, 300 tokens, and complete?" in said


def test_another_number_of_tokens_is_said(released):
    said = complaint(released, replace(SHAPE, token_vocab=64000))
    assert "net.token_embedder.weight is (300, 6), not (64000, 6)" in said
    assert "It looks like a diffusion decoder of 2 layers, width 72, 2 heads, 300 tokens" in said


def test_a_text_network_in_place_of_a_decoder_is_said_to_be_one(predict1):
    said = complaint(predict1)
    assert "It looks like a Text2World network of 2 layers" in said
    assert "a diffusion decoder of 2 layers, width 72, 2 heads, 300 tokens was asked for" in said


def test_a_decoder_in_place_of_a_text_network_is_said_to_be_one(released, shape):
    said = complaint(released, shape)
    assert "It looks like a diffusion decoder of 2 layers" in said


@pytest.mark.parametrize("token_dim", [1, 2])
def test_a_channel_of_tokens_is_not_taken_for_that_of_given_frames(token_dim):
    shape = replace(SHAPE, token_dim=token_dim)
    tensors = {
        name: LazyTensor(size, torch.bfloat16, lambda _: None)
        for name, size in parameter_shapes(shape).items()
    }
    found = infer_shape(Checkpoint("a", layout="torch", tensors=tensors), like=SHAPE)
    assert found == shape
