"""Which of several networks in one repository serves a request: Predict2's are for one size and rate each."""

from collections.abc import Callable
from pathlib import Path

from cosmos_nemo.catalog import CARDS, ModelCard, variant_for

_SINGLE = "model.pt"
"""A folder that holds this file holds one network, whatever its size."""


def choose_variant(
    card: ModelCard,
    *,
    height: int | None,
    width: int | None,
    fps: int | None,
    given: Path,
    assets_dir: Path | None,
    remark: Callable[[str], None],
) -> ModelCard:
    """`card`, or where that is the name of several networks, the one for this size and rate.

    given: a file or folder as the person named it, inside assets_dir or not. A file's name tells the network.
    In a folder it is the nearest of those that are there; without a folder the nearest of all, to be
    fetched. Sizes that are None are the card's. `remark` gets a sentence if it is not the nearest.
    """
    nearest = variant_for(card, height=height, width=width, fps=fps)
    if nearest is card:
        return card
    variants = [other for other in CARDS.values() if other.name.startswith(f"{card.name}-")]
    places = [given] if assets_dir is None else [assets_dir / given, given]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        return nearest
    if place.is_file():
        return next((other for other in variants if _file_of(other) == place.name), card)
    if (place / _SINGLE).is_file():
        return card
    variants.sort(key=lambda other: _distance(other, nearest))
    found = next((other for other in variants if (place / _file_of(other)).is_file()), None)
    if found is None:  # else a NeMo checkpoint, or one of a layout of its own
        return nearest if any(place.glob("model*.pt")) else card
    if found is not nearest:
        remark(f"{_file_of(nearest)} is not here: taking {found.name}")
    return found


def _file_of(card: ModelCard) -> str:
    return card.sources.weights_files[0]


def _distance(card: ModelCard, nearest: ModelCard) -> tuple[bool, bool]:
    """Another size is further away than another rate."""
    return card.video.height != nearest.video.height, card.video.fps != nearest.video.fps
