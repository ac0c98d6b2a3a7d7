"""What follows for a card from what a machine has: pure functions of `Machine`."""

from collections.abc import Sequence

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.memory import (
    DEVICE_OVERHEAD,
    StageMemory,
    host_bytes,
    network_parameters,
    order_of,
    peak,
    published_offloads,
    stage_memory,
    token_parameters,
)
from cosmos_nemo.tools.doctor_machine import Machine

_CPU_PARAMETERS = 10**8
"""Larger networks would take a CPU days for one video."""
_OPTIONAL, _UNKNOWN = ("upsampler",), ("unknown",)
_STAGE_OF_PART = {"network": ("denoise", "token_generation"), "guardrail": ("video_guard",)}
"""Where a part is not called as the stage that it is read for."""


def runnable(machine: Machine, cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The cards whose files are here, but for the upsampler, and which fit with something offloaded."""
    return [
        card
        for card in cards
        if not set(missing_parts(machine, card)) - set(_OPTIONAL)
        and any(not objection(machine, card, offload) for offload in all_offloads(card))
    ]


def missing_parts(machine: Machine, card: ModelCard) -> tuple[str, ...]:
    return machine.missing.get(card.name, _UNKNOWN)


def is_small(card: ModelCard) -> bool:
    """Whether a CPU makes its videos in minutes."""
    if card.tokens is not None and not card.has_diffusion_decoder:
        return token_parameters(card.tokens.network) <= _CPU_PARAMETERS
    return network_parameters(card.network) <= _CPU_PARAMETERS


def stages_of(card: ModelCard) -> tuple[StageMemory, ...]:
    """With everything that the card comes with."""
    sources = card.sources
    return stage_memory(card, guardrails=bool(sources.guardrail), upsamples=bool(sources.upsampler))


def all_offloads(card: ModelCard) -> tuple[frozenset[str], ...]:
    return (frozenset(), *published_offloads(card))


def objection(machine: Machine, card: ModelCard, offload: frozenset[str]) -> str:
    """Why this card cannot run so here, "" if it can."""
    if machine.broken:
        return "packages are broken"
    if not machine.gpus:
        return "" if is_small(card) else "needs a GPU"
    stages = stages_of(card)
    most = peak(stages, offload=offload, is_batch=True, order=order_of(card))
    if most + DEVICE_OVERHEAD > machine.gpus[0].memory:
        return "does not fit"
    if machine.host_memory is not None and host_bytes(stages, offload) > machine.host_memory:
        return "host memory is too small"
    return ""


def bytes_to_fetch(machine: Machine, card: ModelCard) -> tuple[int, bool]:
    """Of the files that are missing and on the hub; and whether the hub told the size of all of them.

    Where it did not, at least the missing weights come, in bfloat16; what is fetched may be larger, as T5's
    float32 is.
    """
    repositories = machine.repositories.get(card.name, ())
    sizes = [
        answer.num_bytes
        for name in repositories
        if (answer := machine.hub.answers.get(name)) is not None and answer.num_bytes is not None
    ]
    if len(sizes) == len(repositories):
        return sum(sizes), True
    parts = missing_parts(machine, card)
    names = {name for part in parts for name in _STAGE_OF_PART.get(part, (part,))}
    weights = sum(stage.weights for stage in stages_of(card) if stage.name in names)
    return max(weights, sum(sizes)), False


def disk_objection(machine: Machine, card: ModelCard) -> str:
    """Why what is missing cannot be fetched to this disk, "" if it can or if that cannot be told."""
    needed, _ = bytes_to_fetch(machine, card)
    too_small = machine.free_disk is not None and needed > machine.free_disk
    return "the disk is too small" if too_small else ""
