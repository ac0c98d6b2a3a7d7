from dataclasses import replace

import pytest
import torch

from cosmos_nemo.catalog import CARDS, CatalogError, Family
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.identity import identify
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.reader.base import Checkpoint

SEVEN_OF_VIDEO = "Cosmos-1.0-Diffusion-7B-Video2World"


@pytest.fixture
def meta_checkpoint(tmp_path):
    """A checkpoint of any size without its numbers, in the names of the network in memory."""

    def make(shape, *, place="."):
        sizes = parameter_shapes(shape)
        tensors = {name: LazyTensor(size, torch.bfloat16, lambda _: None) for name, size in sizes.items()}
        return Checkpoint(tmp_path / place, layout="torch", tensors=tensors)

    return make


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_known_by_its_sizes(meta_checkpoint, name):
    """Several cards may share a network: the first of them is told, whose weights fit the others too."""
    identity = identify(meta_checkpoint(CARDS[name].network))
    assert identity.base is next(card for card in CARDS.values() if card.network == CARDS[name].network)
    assert identity.overrides == {}


@pytest.mark.parametrize("place", ["{}", "{}/nemo/weights", "models--me--{}/snapshots/0123abcd/nemo/weights"])
@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.tokens is None])
def test_of_cards_of_the_same_sizes_it_is_the_one_that_the_folder_is_called_after(
    meta_checkpoint, name, place
):
    identity = identify(meta_checkpoint(CARDS[name].network, place=place.format(name)))
    assert (identity.base, identity.others) == (CARDS[name], ())


def test_a_folder_called_after_a_model_of_other_sizes_tells_nothing(meta_checkpoint):
    card = CARDS["Cosmos-Nano-Video2World"]
    identity = identify(meta_checkpoint(card.network, place="Cosmos-Predict1-7B-WorldInterpolator"))
    assert (identity.base, identity.others) == (card, ("Cosmos-Nano-WorldInterpolator",))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("Cosmos-Nano-Text2World", ()),
        ("Cosmos-1.0-Diffusion-7B-Text2World", ("Cosmos-Predict1-7B-Text2World",)),
        (SEVEN_OF_VIDEO, ("Cosmos-Predict1-7B-Video2World", "Cosmos-Predict1-7B-WorldInterpolator")),
        ("Cosmos-Predict1-4B", ()),
    ],
)
def test_the_others_are_those_that_would_run_otherwise(meta_checkpoint, name, others):
    """Not so the names for weights of one's own, nor the models that share a diffusion decoder."""
    identity = identify(meta_checkpoint(CARDS[name].network))
    assert (identity.base.name, identity.others) == (name, others)
    assert identify(meta_checkpoint(CARDS[name].network), model=name).others == ()


def test_another_size_differs_from_its_nearest_card(meta_checkpoint):
    card = CARDS["Cosmos-1.0-Diffusion-14B-Text2World"]
    identity = identify(meta_checkpoint(replace(card.network, num_layers=30)))
    assert identity.base is card
    assert identity.overrides == {"network": {"num_layers": 30}}
    assert identity.card.network == replace(card.network, num_layers=30)


def test_a_card_json_says_what_shapes_do_not(meta_checkpoint, tmp_path):
    write_card_file(tmp_path, {"network": {"rope_ratios_THW": [1, 1, 1]}, "num_steps": 5})
    identity = identify(meta_checkpoint(CARDS["Cosmos-Nano-Text2World"].network))
    assert identity.card.network.rope_ratios_THW == (1, 1, 1)
    assert identity.overrides == {"network": {"rope_ratios_THW": (1, 1, 1)}, "num_steps": 5}


def test_a_named_model_is_taken_at_its_word(golden):
    identity = identify(open_checkpoint(golden / "nemo_text_zarr"), model="Cosmos-Nano-Text2World")
    assert identity.card == identity.base == CARDS["Cosmos-Nano-Text2World"]


def test_an_unknown_model_is_refused(golden):
    with pytest.raises(CatalogError, match="--model Cosmos-8B is unknown"):
        identify(open_checkpoint(golden / "nemo_text_zarr"), model="Cosmos-8B")


def test_a_file_that_does_not_tell_its_sizes_needs_a_name(meta_checkpoint, shape):
    whole = meta_checkpoint(shape)
    part = {
        n: LazyTensor(whole.shape(n), whole.dtype(n), lambda _: None)
        for n in whole.names()
        if "layernorm" not in n
    }
    with pytest.raises(CheckpointError, match="lacks tensors that tell its sizes: pass --model"):
        identify(Checkpoint(whole.path, layout="torch", tensors=part))


@pytest.mark.parametrize("size", ["Cosmos-1.0-Diffusion-7B", "Cosmos-1.0-Diffusion-14B", "Cosmos-Nano"])
@pytest.mark.parametrize("kind", ["Text2World", "Video2World"])
def test_a_channel_more_is_a_video2world_whatever_else_differs(meta_checkpoint, size, kind):
    card = CARDS[f"{size}-{kind}"]
    identity = identify(meta_checkpoint(replace(card.network, num_layers=3, ffn_hidden_size=1000)))
    assert identity.base is card
    assert identity.overrides == {"network": {"num_layers": 3, "ffn_hidden_size": 1000}}


def test_a_named_interpolator_is_taken_at_its_word(meta_checkpoint):
    shape = CARDS[SEVEN_OF_VIDEO].network
    assert identify(meta_checkpoint(shape)).base is CARDS[SEVEN_OF_VIDEO]
    name = "Cosmos-Predict1-7B-WorldInterpolator"
    identity = identify(meta_checkpoint(shape), model=name)
    assert identity.card == identity.base == CARDS[name]


def test_the_nearest_card_is_one_of_the_networks_family(meta_checkpoint):
    """A nano network shares more sizes with the nano models of another family than with the 7B of its own."""
    nano = CARDS["Cosmos-Nano-Predict2-Video2World"].network
    decoder = replace(
        nano, family=Family.TOKEN_DECODER, token_vocab=200, token_dim=32, takes_given_mask=False
    )
    identity = identify(meta_checkpoint(decoder))
    assert identity.base.network.family is Family.TOKEN_DECODER
    assert identity.overrides["network"]["num_layers"] == nano.num_layers
