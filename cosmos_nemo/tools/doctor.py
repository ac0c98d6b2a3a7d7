"""`cosmos-nemo doctor`: what this machine can run.

`look` asks the machine, `report` is a pure function of the answers. Whatever cannot be found out becomes a
line of the report.
"""

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_nemo.catalog import CARDS, NOT_ON_THE_HUB, CatalogError, DiTShape, ModelCard, Task, find_card
from cosmos_nemo.memory import (
    DEVICE_OVERHEAD,
    GIB,
    StageMemory,
    host_bytes,
    network_parameters,
    order_of,
    peak,
    published_offloads,
    stage_memory,
    token_parameters,
)

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.released import HubFiles

_PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "transformers",
    "diffusers",
    "huggingface_hub",
    "numpy",
)
_CPU_PARAMETERS = 10**8
"""Larger networks would take a CPU days for one video."""
_RATES = {"H200": 563e12}
"""Floating point operations a second, by what stands in the GPU's name: the 7B's network call has 2,209 TFLOP
and took 3.92 s (docs/performance.md)."""
_OPTIONAL, _UNKNOWN = ("upsampler",), ("unknown",)


@dataclass(frozen=True)
class Gpu:
    """`memory` in bytes; `capability` is CUDA's, e.g. (9, 0)."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found out."""

    facts: tuple[tuple[str, str], ...] = ()
    """Labels and lines, shown as they are."""
    gpus: tuple[Gpu, ...] = ()
    host_memory: int | None = None
    """Bytes; None if it could not be told."""
    broken: str = ""
    """Why the network's code cannot even be imported; "" if it can."""
    missing: Mapping[str, tuple[str, ...]]
    """Of each card: the parts whose files are not here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="CARD", help="only this model (cosmos-nemo models lists them)")
    parser.add_argument(
        "--checkpoint_dir", type=Path, metavar="DIR", help="folder with the models' files, beside the cache"
    )


def run(args: argparse.Namespace) -> int:
    """0 if the machine can run at least one of the cards, 1 if none, 2 for a bad argument."""
    try:
        cards = (find_card(args.model),) if args.model else _cards_of_interest()
    except CatalogError as error:
        print(f"cosmos-nemo doctor: {error}", file=sys.stderr)
        return 2
    if args.checkpoint_dir is not None and not args.checkpoint_dir.is_dir():
        print(f"cosmos-nemo doctor: --checkpoint_dir {args.checkpoint_dir} is no folder.", file=sys.stderr)
        return 2
    machine = look(cards, checkpoint_dir=args.checkpoint_dir)
    for line in report(machine, cards):
        print(line)
    return 0 if runnable(machine, cards) else 1


def _cards_of_interest() -> tuple[ModelCard, ...]:
    """All but the names that are kept free for a person's own weights."""
    return tuple(card for card in CARDS.values() if _is_released(card) or _is_small(card))


def _is_released(card: ModelCard) -> bool:
    return not card.sources.weights.startswith(f"{NOT_ON_THE_HUB}/")


def _is_small(card: ModelCard) -> bool:
    if card.tokens is not None and not card.has_diffusion_decoder:
        return token_parameters(card.tokens.network) <= _CPU_PARAMETERS
    return network_parameters(card.network) <= _CPU_PARAMETERS


def report(machine: Machine, cards: Sequence[ModelCard]) -> list[str]:
    """Lines for a person to read."""
    facts = list(_facts(machine))
    label = max(len(name) for name, _ in facts)
    lines = [f"{name:<{label}}  {text}" for name, text in facts]
    lines += ["", *_file_lines(machine, cards), ""]
    lines += ["predicted memory, in a batch, with guardrails and prompt upsampler where there are any"]
    for group in _alike(cards):
        lines += ["", *_memory_lines(machine, group)]
    able = [card.name for card in runnable(machine, cards)]
    return [*lines, "", f"can run now: {', '.join(able) or 'none of these models'}"]


def runnable(machine: Machine, cards: Sequence[ModelCard]) -> list[ModelCard]:
    """The cards whose files are here, but for the upsampler, and which fit with something offloaded."""
    return [
        card
        for card in cards
        if not set(machine.missing.get(card.name, _UNKNOWN)) - set(_OPTIONAL)
        and any(not _objection(machine, card, offload) for offload in _all_offloads(card))
    ]


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
    if machine.broken:
        yield "broken", machine.broken


def _file_lines(machine: Machine, cards: Sequence[ModelCard]) -> Iterator[str]:
    width = max(len(card.name) for card in cards)
    yield "files"
    for card in cards:
        missing = machine.missing.get(card.name, _UNKNOWN)
        names = ", ".join(name.replace("_", " ") for name in missing)
        yield f"  {card.name:<{width}}  {f'missing: {names}' if missing else 'complete'}"


def _alike(cards: Sequence[ModelCard]) -> list[list[ModelCard]]:
    """Cards that need the same memory for the same video, together."""
    groups: dict[object, list[ModelCard]] = {}
    for card in cards:
        groups.setdefault((card.video, _stages(card)), []).append(card)
    return list(groups.values())


def _stages(card: ModelCard) -> tuple[StageMemory, ...]:
    """With everything that the card comes with."""
    sources = card.sources
    return stage_memory(card, guardrails=bool(sources.guardrail), upsamples=bool(sources.upsampler))


def _memory_lines(machine: Machine, group: Sequence[ModelCard]) -> Iterator[str]:
    card, video = group[0], group[0].video
    stages = _stages(card)
    for each in group:
        yield f"{each.name}, {_time(machine, each)}"
    frames = "1 image" if card.task is Task.TEXT2IMAGE else f"{video.num_frames} frames"
    title, names = f"{frames} of {video.width} x {video.height}", _offload_names(card, stages)
    width = max(len(name) for name in (title, *names))
    yield f"  {title:<{width}}  GPU GiB  host GiB  on this machine"
    rows = list(zip(_offloads(card, stages), names, strict=True))
    for offload, name in rows[:1] if _is_small(card) else rows:
        most = _gib(peak(stages, offload=offload, is_batch=True, order=order_of(card)))
        host = _gib(host_bytes(stages, offload))
        yield f"  {name:<{width}}  {most:>7}  {host:>8}  {_objection(machine, card, offload) or 'fits'}"


def _gib(num_bytes: int) -> str:
    return "< 0.1" if 0 < num_bytes < GIB / 10 else f"{num_bytes / GIB:.1f}"


def _all_offloads(card: ModelCard) -> tuple[frozenset[str], ...]:
    return (frozenset(), *published_offloads(card))


def _offloads(card: ModelCard, stages: tuple[StageMemory, ...]) -> list[frozenset[str]]:
    """The published rows in which something more is parked than in the row before."""
    first, *others = _all_offloads(card)
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


def _objection(machine: Machine, card: ModelCard, offload: frozenset[str]) -> str:
    """Why this card cannot run so here, "" if it can."""
    if machine.broken:
        return "packages are broken"
    if not machine.gpus:
        return "" if _is_small(card) else "needs a GPU"
    stages = _stages(card)
    most = peak(stages, offload=offload, is_batch=True, order=order_of(card))
    if most + DEVICE_OVERHEAD > machine.gpus[0].memory:
        return "does not fit"
    if machine.host_memory is not None and host_bytes(stages, offload) > machine.host_memory:
        return "host memory is too small"
    return ""


def _time(machine: Machine, card: ModelCard) -> str:
    rate = next((r for part, r in _RATES.items() if machine.gpus and part in machine.gpus[0].name), None)
    calls = _num_calls(card)
    if rate is None or calls is None or _is_small(card):
        return "time not measured on such a machine"
    seconds = calls * call_operations(card.network, _num_tokens(card)) / rate
    return f"about {seconds / 60:.1f} minutes of denoising on one GPU"


def call_operations(shape: DiTShape, num_tokens: int) -> float:
    """Floating point operations of one network call: the matrix products, and attention to video and text."""
    width = shape.hidden_size
    products = 2 * num_tokens * (6 * width**2 + 2 * width * shape.ffn_hidden_size)
    attention = 4 * num_tokens * (num_tokens + shape.text_length) * width
    return float(shape.num_layers * (products + attention))


def _num_tokens(card: ModelCard) -> int:
    video, tokenizer = card.video, card.tokenizer
    cell = tokenizer.spatial_compression * card.network.patch_size
    frames = card.latent_frames(video.num_frames)
    return frames * (video.height // cell) * (video.width // cell)


def _num_calls(card: ModelCard) -> int | None:
    """Network calls of one video; None where torch, which the samplers need, does not import."""
    try:
        from cosmos_nemo.sampling.samplers import SAMPLERS
    except Exception:  # a broken install raises anything
        return None
    return SAMPLERS[card.sampler].num_calls(card.num_steps) * card.num_branches


def look(cards: Sequence[ModelCard], *, checkpoint_dir: Path | None) -> Machine:
    """Asks this machine; nothing is downloaded, and no weight is read."""
    questions: list[tuple[str, Callable[[], str]]] = [
        ("Python", platform.python_version),
        ("packages", _packages),
        ("driver", _driver),
        ("back ends", _backends),
        ("cuDNN", _cudnn),
        ("ffmpeg", _ffmpeg),
        ("cache", lambda: _free_disk(_cache_folder())),
    ]
    if checkpoint_dir is not None:
        questions.append(("files in", lambda: _free_disk(checkpoint_dir)))
    questions.append(("HF token", _token))
    facts = [(label, _answer(question)) for label, question in questions]
    try:
        gpus = _gpus()
    except Exception as error:
        gpus = ()
        facts.append(("CUDA", _failure(error)))
    try:
        host_memory = _host_memory()
    except Exception as error:
        host_memory = None
        facts.append(("memory", _failure(error)))
    return Machine(
        facts=tuple(facts),
        gpus=gpus,
        host_memory=host_memory,
        broken=_broken(),
        missing={card.name: _missing(card, checkpoint_dir) for card in cards},
    )


def _broken() -> str:
    try:
        importlib.import_module("cosmos_nemo.models.build")
    except Exception as error:  # from a missing package to a library of another CUDA
        return f"the network cannot be imported ({type(error).__name__}: {error})"
    return ""


def _answer(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"cannot be told ({type(error).__name__}{f': {text[0]}' if text else ''})"


def _packages() -> str:
    return ", ".join(f"{name} {_version(name)}" for name in ("cosmos_nemo", *_PACKAGES))


def _version(package: str) -> str:
    if package == "cosmos_nemo":
        import cosmos_nemo

        return cosmos_nemo.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> tuple[Gpu, ...]:
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(Gpu(properties.name, properties.total_memory, (properties.major, properties.minor)))
    return tuple(found)


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none found (there is no nvidia-smi)"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    return ", ".join(sorted(set(done.stdout.split()))) or "nvidia-smi names none"


def _backends() -> str:
    from cosmos_nemo.models.common.backend import te_missing

    reason = te_missing()
    return "torch, te" if reason is None else f"torch; not te: {reason}"


def _cudnn() -> str:
    import torch

    if not torch.cuda.is_available():
        return "not used without a GPU"
    found = torch.backends.cudnn.version()
    if found is None:
        return "not in this PyTorch: attention will be slow"
    enabled = "on" if torch.backends.cuda.cudnn_sdp_enabled() else "off: attention will be slow"
    return f"{found // 10000}.{found // 100 % 100}.{found % 100}, its attention is {enabled}"


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _cache_folder() -> Path:
    from cosmos_nemo.checkpoint.hub import cache_folder

    return cache_folder()


def _free_disk(folder: Path) -> str:
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return f"{folder}, {shutil.disk_usage(existing).free / GIB:.1f} GiB free"


def _token() -> str:
    from huggingface_hub import get_token

    return "set" if get_token() else "not set: models whose licence must be accepted cannot be downloaded"


def _host_memory() -> int:
    """What the machine has, or a container of it may use."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(installed, int(text)) if text.isdigit() else installed


def _missing(card: ModelCard, checkpoint_dir: Path | None) -> tuple[str, ...]:
    """The parts whose files are not all here; what cannot be told counts as missing."""
    try:
        parts = _parts(card)
    except Exception as error:
        return (_failure(error),)
    return tuple(name for name, files in parts.items() if not _is_here(files, checkpoint_dir))


def _parts(card: ModelCard) -> "dict[str, HubFiles]":
    from cosmos_nemo.checkpoint import locate

    sources = card.sources
    parts = {"network": locate.weights_of(card)}
    if sources.tokenizer:
        parts["tokenizer"] = locate.tokenizer_of(card)
    if card.tokens is not None:
        parts["discrete_tokenizer"] = locate.discrete_tokenizer_of(card)
    if card.has_diffusion_decoder:
        parts["diffusion_decoder"] = locate.diffusion_decoder_of(card)
    if sources.text_encoder:
        parts["text_encoder"] = locate.text_encoder_of(card)
    if sources.upsampler:
        parts["upsampler"] = locate.upsampler_of(card)
    if sources.guardrail:
        parts["guardrail"] = locate.guardrail_of(card)
    if sources.text_guard:
        parts["text_guard"] = locate.text_guard_of(card)
    return parts


def _is_here(files: "HubFiles", checkpoint_dir: Path | None) -> bool:
    from cosmos_nemo.checkpoint.families import lacking_together
    from cosmos_nemo.checkpoint.hub import names_in
    from cosmos_nemo.checkpoint.locate import locate

    try:
        found = locate(files, assets_dir=checkpoint_dir, download=False)
        return found is not None and not lacking_together(files, names_in(found))
    except Exception:  # half a download, or a cache that cannot be read
        return False
