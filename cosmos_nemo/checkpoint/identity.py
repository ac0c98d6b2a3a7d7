"""Which model a checkpoint holds."""

from dataclasses import dataclass, replace
from typing import Any

from cosmos_nemo.catalog import CARDS, ModelCard, find_card, overrides_of, with_overrides
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.sizes import SIZES, infer_shape, nearest_card


@dataclass(frozen=True, kw_only=True)
class Identity:
    """`card` is the model; `base` is the released one it is asked for by, with a card.json of `overrides`."""

    card: ModelCard
    base: ModelCard

    @property
    def overrides(self) -> dict[str, Any]:
        return overrides_of(self.card, self.base)


def identify(checkpoint: Checkpoint, *, model: str | None = None) -> Identity:
    """The card called `model` (None: the one of the nearest sizes) with the checkpoint's card.json.

    CheckpointError if the shapes tell nothing; CatalogError for an unknown name or a bad card.json.
    """
    stated = read_card_file(checkpoint.path)
    if model is not None:
        base = find_card(model)
        return Identity(card=with_overrides(base, stated), base=base)
    found = infer_shape(checkpoint, like=next(iter(CARDS.values())).network)
    if found is None:
        raise CheckpointError(f"{checkpoint.path} lacks tensors that tell its sizes: pass --model")
    base = nearest_card(found)
    sizes = {name: getattr(found, name) for name in SIZES}
    sized = replace(base, network=replace(base.network, **sizes))
    return Identity(card=with_overrides(sized, stated), base=base)
