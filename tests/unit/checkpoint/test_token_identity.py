from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import CARDS, CatalogError, TokenShape
from cosmos_nemo.checkpoint.autoregressive import MODELS
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.token_formats import Stored, TokenFormat, expected_tensors, token_rules_for
from cosmos_nemo.checkpoint.token_identity import (
    holds_token_transformer,
    identify_tokens,
    models_of_the_same_sizes,
    token_cards,
)
from cosmos_nemo.checkpoint.token_sizes import KNOWN_SHAPES
from tests.tiny_tokens import BASE, TEXT

FORMATS = [Stored(TokenFormat.RELEASED, "model."), Stored(TokenFormat.NEMO, "module.")]


def headers(
    shape: TokenShape, stored: Stored = FORMATS[0], *, without: str = "\0", path: Path = Path("model.pt")
) -> Checkpoint:
    """Names and shapes; no tensor can be read."""

    def refuse(index: tuple[slice, ...]) -> torch.Tensor:
        raise AssertionError("read")

    shapes = expected_tensors(token_rules_for(shape, stored))
    lazy = {name: LazyTensor(size, torch.bfloat16, refuse) for name, size in shapes.items()}
    kept = {name: tensor for name, tensor in lazy.items() if without not in name}
    return Checkpoint(path, layout="torch", tensors=kept)


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("size", KNOWN_SHAPES)
def test_every_released_model_is_told_by_its_sizes_without_a_difference(size: str, stored: Stored) -> None:
    identity = identify_tokens(headers(KNOWN_SHAPES[size], stored))
    assert identity.base.name == MODELS[size] and identity.overrides == {}
    assert identity.card.tokens is not None and identity.card.tokens.network == KNOWN_SHAPES[size]
    assert models_of_the_same_sizes(identity)[0] == MODELS[size]


def test_releases_of_the_same_sizes_are_named_together() -> None:
    identity = identify_tokens(headers(KNOWN_SHAPES["12B"]))
    assert models_of_the_same_sizes(identity) == ["Cosmos-Predict1-12B", "Cosmos-1.0-Autoregressive-12B"]
    assert (identity.base.name, *identity.others) == tuple(models_of_the_same_sizes(identity))


@pytest.mark.parametrize("name", ["Cosmos-Predict1-12B", "Cosmos-1.0-Autoregressive-12B"])
def test_of_releases_of_the_same_sizes_it_is_the_one_that_the_folder_is_called_after(name: str) -> None:
    identity = identify_tokens(headers(KNOWN_SHAPES["12B"], path=Path(name) / "model.pt"))
    assert (identity.base.name, identity.others) == (name, ())


def test_other_sizes_differ_from_the_nearest_model_and_fit_none() -> None:
    identity = identify_tokens(headers(TEXT))
    network = identity.overrides["tokens"]["network"]
    assert network["text_dim"] == 24 and network["num_layers"] == 2
    assert "latent_THW" not in network  # no tensor tells it
    assert models_of_the_same_sizes(identity) == []


def test_a_nano_model_is_told_by_its_sizes_without_a_difference() -> None:
    card = CARDS["Cosmos-Nano-Autoregressive"]
    assert card.tokens is not None
    identity = identify_tokens(headers(card.tokens.network))
    assert identity.base == card and identity.overrides == {}
    assert models_of_the_same_sizes(identity) == [card.name]


def test_what_a_card_file_says_is_kept_though_no_tensor_tells_it(tmp_path: Path) -> None:
    write_card_file(tmp_path, {"tokens": {"network": {"latent_THW": [3, 2, 4]}}, "video": {"height": 32}})
    identity = identify_tokens(headers(BASE, path=tmp_path))
    assert identity.card.tokens is not None and identity.card.tokens.network == BASE
    assert identity.card.video.height == 32


def test_a_name_counts_more_than_the_sizes() -> None:
    identity = identify_tokens(headers(KNOWN_SHAPES["4B"]), model="Cosmos-1.0-Autoregressive-12B")
    assert identity.card == CARDS["Cosmos-1.0-Autoregressive-12B"]


def test_models_without_a_card_of_their_own_have_one_here() -> None:
    for size, name in MODELS.items():
        tokens = token_cards()[name].tokens
        assert tokens is not None and tokens.network == KNOWN_SHAPES[size]


def test_a_diffusion_models_name_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        identify_tokens(headers(KNOWN_SHAPES["4B"]), model="Cosmos-Nano-Text2World")
    said = str(caught.value)
    assert "model.pt holds an autoregressive transformer, the 4B (16 layers, width 4096)" in said
    assert "Cosmos-Nano-Text2World is a diffusion model: pass one of Cosmos-Predict1-4B" in said


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CatalogError, match="4C is unknown"):
        identify_tokens(headers(BASE), model="4C")


def test_a_file_that_does_not_tell_its_sizes_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"lacks tensors that tell the sizes.*With --model"):
        identify_tokens(headers(BASE, without="output."))


def test_language_models_and_diffusion_networks_are_not_taken_for_one(golden: Path) -> None:
    from cosmos_nemo.checkpoint.reader import open_checkpoint

    assert holds_token_transformer(headers(replace(BASE, num_layers=1)))
    assert not holds_token_transformer(headers(BASE, without="q_norm"))  # as the prompt upsampler's file
    assert not holds_token_transformer(open_checkpoint(golden / "nemo_text_zarr"))
