"""Which autoregressive model a checkpoint holds."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cosmos_nemo.catalog import CARDS, ModelCard, TokenModel, TokenShape, find_card, with_overrides
from cosmos_nemo.checkpoint.autoregressive import MODELS
from cosmos_nemo.checkpoint.called import called
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.identity import Identity
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.token_sizes import (
    KNOWN_SHAPES,
    TOKEN_SIZES,
    describe,
    infer_token_shape,
    nearest_known,
    same_token_sizes,
)

# Language models have layers of the same names, but no norms of their queries.
_QUERY_NORM = re.compile(r"layers\.\d+\.attention\.q_norm\.|decoder\.layers\.self_attention\.q_layernorm\.")


def holds_token_transformer(checkpoint: Checkpoint) -> bool:
    """Whether its names are those of an autoregressive transformer, complete or not."""
    return any(_QUERY_NORM.search(name) for name in checkpoint.names())


def token_cards() -> dict[str, ModelCard]:
    """Name -> card of every released autoregressive model, those that cannot be run yet among them."""
    like = CARDS[MODELS["4B"]]
    released = {
        name: replace(like, name=name, tokens=TokenModel(network=KNOWN_SHAPES[size]))
        for size, name in MODELS.items()
    }
    return released | {name: card for name, card in CARDS.items() if card.tokens is not None}


def identify_tokens(
    checkpoint: Checkpoint, *, model: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Identity:
    """The card called `model` (None: the one of the nearest sizes) with `overrides` (None: the card.json's).

    Of cards of the same sizes it is the one that the checkpoint is called, else the first. How angles are
    scaled is the card's: no tensor tells it. CheckpointError if `model` is no autoregressive one, or if the
    shapes tell nothing; CatalogError for an unknown name or a bad card.json.
    """
    stated = read_card_file(checkpoint.path) if overrides is None else dict(overrides)
    found = infer_token_shape(checkpoint)
    if model is not None:
        base = token_cards().get(model) or find_card(model)
        if base.tokens is None:
            held = f", {describe(found)}" if found is not None else ""
            raise CheckpointError(
                f"{checkpoint.path} holds an autoregressive transformer{held}, but {model} is a diffusion "
                f"model: pass one of {', '.join(token_cards())}, or leave --model out"
            )
        return Identity(card=with_overrides(base, stated), base=base)
    if found is None:
        raise CheckpointError(
            f"{checkpoint.path} lacks tensors that tell the sizes of its autoregressive transformer: is it "
            "complete? With --model, what is missing is named"
        )
    cards, same = token_cards(), _names_of_sizes(found)
    name = called(checkpoint.path, same)
    size, _ = nearest_known(found)
    base = cards[name or next(iter(same), MODELS[size])]
    others = () if name is not None else tuple(same[1:])
    assert base.tokens is not None
    sizes = {name: getattr(found, name) for name in TOKEN_SIZES}
    tokens = replace(base.tokens, network=replace(base.tokens.network, **sizes))
    return Identity(card=with_overrides(replace(base, tokens=tokens), stated), base=base, others=others)


def models_of_the_same_sizes(identity: Identity) -> list[str]:
    """Names of the released models whose transformers have the same tensors as the card's."""
    tokens = identity.card.tokens
    assert tokens is not None
    return _names_of_sizes(tokens.network)


def _names_of_sizes(shape: TokenShape) -> list[str]:
    """A released model comes before others that are like it."""
    return [
        name
        for name, card in token_cards().items()
        if card.tokens is not None and same_token_sizes(card.tokens.network, shape)
    ]
