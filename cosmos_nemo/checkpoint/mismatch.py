"""Sentences about a file whose tensors are not those of the network asked for."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.checkpoint.rules import Shape
from cosmos_nemo.checkpoint.sizes import describe, nearest_card, same_sizes


def check_tensors(
    path: Path,
    *,
    expected: Mapping[str, Shape],
    stored: Mapping[str, Shape],
    asked: DiTShape,
    found: DiTShape | None,
) -> None:
    """CheckpointError unless the file holds exactly the expected names and shapes.

    `found` is the network its shapes look like; if that is not the one `asked` for, the error says so.
    """
    if wrong := complaint(expected, stored):
        raise CheckpointError(f"{path}: {wrong}. {_advice(asked, found)}")


def complaint(expected: Mapping[str, Shape], stored: Mapping[str, Shape]) -> str:
    """What is wrong, in one clause, with a file of those names and shapes; "" if nothing is."""
    return _missing(expected, stored) or _unexpected(expected, stored) or _other_shapes(expected, stored)


def _missing(expected: Mapping[str, Shape], stored: Mapping[str, Shape]) -> str:
    missing = [name for name in expected if name not in stored]
    if not missing:
        return ""
    spare = [name for name in stored if name not in expected]
    near = difflib.get_close_matches(missing[0], spare or stored, n=1, cutoff=0.6)
    instead = f" (nearest in the file: {near[0]})" if near else ""
    return f"{_count(missing, expected)} missing, first: {missing[0]}{instead}"


def _unexpected(expected: Mapping[str, Shape], stored: Mapping[str, Shape]) -> str:
    spare = [name for name in stored if name not in expected]
    if not spare:
        return ""
    near = difflib.get_close_matches(spare[0], expected, n=1, cutoff=0.6)
    like = f" (nearest of the network: {near[0]})" if near else ""
    return f"{_count(spare, stored)} belong to another network, first: {spare[0]}{like}"


def _other_shapes(expected: Mapping[str, Shape], stored: Mapping[str, Shape]) -> str:
    other = [name for name, shape in expected.items() if stored[name] != shape]
    if not other:
        return ""
    first = f"{other[0]} is {stored[other[0]]}, not {expected[other[0]]}"
    return f"{_count(other, expected)} of another shape, first: {first}"


def _count(some: Collection[str], all_: Collection[str]) -> str:
    return f"{len(some):,} of {len(all_):,} tensors"


def _advice(asked: DiTShape, found: DiTShape | None) -> str:
    if found is None or same_sizes(found, asked):
        return f"Is it {describe(asked)}, and complete?"
    sentence = f"It looks like {describe(found)}, and {describe(asked)} was asked for"
    card = nearest_card(found)
    if same_sizes(found, card.network):
        return f"{sentence}: pass --model {card.name}"
    return f"{sentence}: pass another checkpoint, or put a card.json with its sizes beside it"
