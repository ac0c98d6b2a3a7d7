"""The lines of `cosmos-nemo doctor`."""

from collections import Counter
from collections.abc import Iterator, Sequence

from cosmos_nemo.catalog import ModelCard, Task
from cosmos_nemo.memory import GIB, StageMemory, host_bytes, order_of, peak
from cosmos_nemo.tools.doctor_machine import Machine
from cosmos_nemo.tools.doctor_times import time_text
from cosmos_nemo.tools.doctor_verdict import (
    all_offloads,
    bytes_to_fetch,
    disk_objection,
    is_small,
    missing_parts,
    objection,
    runnable,
    stages_of,
)


def report(machine: Machine, cards: Sequence[ModelCard]) -> list[str]:
    """Lines for a person to read."""
    facts = list(_facts(machine))
    label = max(len(name) for name, _ in facts)
    lines = [f"{name:<{label}}  {text}" for name, text in facts]
    lines += ["", *_file_lines(machine, cards), *_hub_lines(machine), ""]
    lines += ["predicted memory, in a batch, with guardrails and prompt upsampler where there are any"]
    for group in _alike(cards):
        lines += ["", *_memory_lines(machine, group)]
    able = [card.name for card in runnable(machine, cards)]
    return [*lines, "", f"can run now: {', '.join(able) or 'none of these models'}"]


def _facts(machine: Machine) -> Iterator[tuple[str, str]]:
    yield from machine.facts
    for gpu, count in Counter(machine.gpus).items():
        major, minor = gpu.capability
        times = f"{count} x " if count > 1 else ""
        yield "GPU", f"{times}{gpu.name}, {gpu.memory / GIB:.1f} GiB, compute capability {major}.{minor}"
    if not machine.gpus:
        yield "GPU", "no GPU: the CPU runs the nano models"
    known = "unknown" if machine.host_memory is None else f"{machine.host_memory / GIB:.1f} GiB"
    yield "host memory", known
    yield "hub", machine.hub.state
    if machine.broken:
        yield "broken", machine.broken


def _file_lines(machine: Machine, cards: Sequence[ModelCard]) -> Iterator[str]:
    width = max(len(card.name) for card in cards)
    yield "files"
    for card in cards:
        missing = missing_parts(machine, card)
        names = ", ".join(name.replace("_", " ") for name in missing)
        needed = _needed_disk(machine, card)
        yield f"  {card.name:<{width}}  {f'missing: {names}{needed}' if missing else 'complete'}"


def _needed_disk(machine: Machine, card: ModelCard) -> str:
    needed, is_told = bytes_to_fetch(machine, card)
    if not needed or not machine.repositories.get(card.name):
        return ""
    size = f"; {'' if is_told else 'at least '}{_gib(needed)} GiB to fetch"
    return f"{size}, {no}" if (no := disk_objection(machine, card)) else size


def _hub_lines(machine: Machine) -> Iterator[str]:
    answers = machine.hub.answers
    if not answers:
        return
    width = max(map(len, answers))
    yield ""
    yield "on the hub"
    for name, access in answers.items():
        size = "" if access.num_bytes is None or not access.is_open else f", {_gib(access.num_bytes)} GiB"
        yield f"  {name:<{width}}  {access.text}{size}"


def _alike(cards: Sequence[ModelCard]) -> list[list[ModelCard]]:
    """Cards that need the same memory for the same video, together."""
    groups: dict[object, list[ModelCard]] = {}
    for card in cards:
        groups.setdefault((card.video, stages_of(card)), []).append(card)
    return list(groups.values())


def _memory_lines(machine: Machine, group: Sequence[ModelCard]) -> Iterator[str]:
    card, video = group[0], group[0].video
    stages = stages_of(card)
    gpu = machine.gpus[0].name if machine.gpus else None
    for each in group:
        yield f"{each.name}, {time_text(each.name, gpu)}"
    frames = "1 image" if card.task is Task.TEXT2IMAGE else f"{video.num_frames} frames"
    title, names = f"{frames} of {video.width} x {video.height}", _offload_names(card, stages)
    width = max(len(name) for name in (title, *names))
    yield f"  {title:<{width}}  GPU GiB  host GiB  on this machine"
    rows = list(zip(_offloads(card, stages), names, strict=True))
    for offload, name in rows[:1] if is_small(card) else rows:
        most = _gib(peak(stages, offload=offload, is_batch=True, order=order_of(card)))
        host = _gib(host_bytes(stages, offload))
        yield f"  {name:<{width}}  {most:>7}  {host:>8}  {objection(machine, card, offload) or 'fits'}"


def _gib(num_bytes: int) -> str:
    return "< 0.1" if 0 < num_bytes < GIB / 10 else f"{num_bytes / GIB:.1f}"


def _offloads(card: ModelCard, stages: tuple[StageMemory, ...]) -> list[frozenset[str]]:
    """The published rows in which something more is parked than in the row before."""
    first, *others = all_offloads(card)
    chosen = [first]
    for offload in others:
        if host_bytes(stages, offload) > host_bytes(stages, chosen[-1]):
            chosen.append(offload)
    return chosen


def _offload_names(card: ModelCard, stages: tuple[StageMemory, ...]) -> list[str]:
    names, before = ["nothing offloaded"], frozenset[str]()
    for offload in _offloads(card, stages)[1:]:
        added = ",".join(sorted(name for name in offload - before if host_bytes(stages, frozenset({name}))))
        names.append(f"{'+' if before else '--offload'} {added}")
        before = offload
    return names
