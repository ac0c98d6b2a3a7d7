"""Which model a checkpoint holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cosmos_nemo.catalog import CARDS, Family, ModelCard, find_card, overrides_of, with_overrides
from cosmos_nemo.checkpoint.called import called
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.sizes import SIZES, cards_of_sizes, describe, infer_shape, nearest_card


@dataclass(frozen=True, kw_only=True)
class Identity:
    """`card` is the model; `base` is the released one it is asked for by, with a card.json of `overrides`."""

    card: ModelCard
    base: ModelCard
    is_decoder: bool = False
    """The checkpoint is that of the autoregressive model's diffusion decoder."""
    others: tuple[str, ...] = ()
    """Models that it may as well be: they have the same sizes, and nothing names one of them."""

    @property
    def name(self) -> str:
        return f"the diffusion decoder of {self.base.name}" if self.is_decoder else self.base.name

    @property
    def overrides(self) -> dict[str, Any]:
        return overrides_of(self.card, self.base)


def identify(
    checkpoint: Checkpoint, *, model: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Identity:
    """The card called `model` (None: the one of the nearest sizes) with `overrides` (None: the card.json's).

    Of cards of the same sizes it is the one that the checkpoint is called, else the first. Of an
    autoregressive model, it is the diffusion decoder. CheckpointError if the shapes tell nothing, or that the
    model is of another kind; CatalogError for an unknown name or a bad card.json.
    """
    stated = read_card_file(checkpoint.path) if overrides is None else dict(overrides)
    found = infer_shape(checkpoint, like=next(iter(CARDS.values())).network)
    if model is not None:
        base = find_card(model)
        if base.tokens is not None and found is not None and found.family is not Family.TOKEN_DECODER:
            raise CheckpointError(
                f"{checkpoint.path} is {describe(found)}, but {model} is autoregressive: pass --model "
                f"{nearest_card(found).name}, or leave it out"
            )
        return _identity(with_overrides(base, stated), base)
    if found is None:
        raise CheckpointError(f"{checkpoint.path} lacks tensors that tell its sizes: pass --model")
    same = cards_of_sizes(found)
    name = called(checkpoint.path, [card.name for card in same])
    base = find_card(name) if name is not None else nearest_card(found)
    others = tuple(card.name for card in _running_otherwise(same, base)) if name is None else ()
    sizes = {name: getattr(found, name) for name in SIZES}
    sized = replace(base, network=replace(base.network, **sizes))
    return _identity(with_overrides(sized, stated), base, others)


def _identity(card: ModelCard, base: ModelCard, others: tuple[str, ...] = ()) -> Identity:
    is_decoder = card.network.family is Family.TOKEN_DECODER
    return Identity(card=card, base=base, is_decoder=is_decoder, others=() if is_decoder else others)


def _running_otherwise(cards: Sequence[ModelCard], base: ModelCard) -> list[ModelCard]:
    """One of each kind that differs from `base` in more than its name and where its files come from."""
    kinds: dict[ModelCard, ModelCard] = {}
    for card in (base, *cards):
        kinds.setdefault(replace(card, name="", sources=base.sources), card)
    return [card for card in kinds.values() if card is not base]
