"""What `cosmos-nemo doctor` asks of this machine. What cannot be found out becomes a line of the report."""

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.memory import GIB
from cosmos_nemo.tools.doctor_hub import Hub, ask_hub

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.released import HubFiles

_Answer = TypeVar("_Answer")
_PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "transformers",
    "diffusers",
    "huggingface_hub",
    "numpy",
)


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
    free_disk: int | None = None
    """Bytes where files would be fetched to; None if it could not be told."""
    broken: str = ""
    """Why the network's code cannot even be imported; "" if it can."""
    missing: Mapping[str, tuple[str, ...]]
    """Of each card: the parts whose files are not here."""
    repositories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each card: the hub repositories of those parts."""
    hub: Hub = field(default_factory=Hub)


def look(cards: Sequence[ModelCard], *, checkpoint_dir: Path | None) -> Machine:
    """Asks this machine, and the hub for what is missing; nothing is downloaded, and no weight is read."""
    broken = _broken()
    questions: list[tuple[str, Callable[[], str]]] = [
        ("Python", platform.python_version),
        ("packages", _packages),
        ("driver", _driver),
        ("back ends", _backends),
        ("cuDNN", _cudnn),
        ("attention", _flash),
        ("ffmpeg", _ffmpeg),
        ("cache", lambda: _free_disk(_cache_folder())),
    ]
    if checkpoint_dir is not None:
        questions.append(("files in", lambda: _free_disk(checkpoint_dir)))
    questions.append(("HF token", _token))
    facts = [(label, _answer(question)) for label, question in questions]
    gpus, failure = _told(_gpus)
    if failure:
        facts.append(("CUDA", failure))
    host_memory, failure = _told(_host_memory)
    if failure:
        facts.append(("memory", failure))
    free_disk, _ = _told(lambda: _free_bytes(checkpoint_dir or _cache_folder()))
    missing, wanted = {}, {}
    for card in cards:
        missing[card.name], wanted[card.name] = _missing(card, checkpoint_dir)
    hub, failure = _told(lambda: ask_hub([files for of_card in wanted.values() for files in of_card]))
    return Machine(
        facts=tuple(facts),
        gpus=gpus or (),
        host_memory=host_memory,
        free_disk=free_disk,
        broken=broken,
        missing=missing,
        repositories={
            name: tuple(dict.fromkeys(files.repository for files in of_card))
            for name, of_card in wanted.items()
        },
        hub=hub or Hub(state=failure),
    )


def _broken() -> str:
    """Megatron is imported as doors do it: by itself 0.15.0 fails where PyTorch has CUDA but finds no GPU."""
    try:
        importlib.import_module("cosmos_nemo.parallel.startup").prepare_process()
        importlib.import_module("cosmos_nemo.models.build")
    except Exception as error:  # from a missing package to a library of another CUDA
        return f"the network cannot be imported ({type(error).__name__}: {error})"
    return ""


def _answer(question: Callable[[], str]) -> str:
    answer, failure = _told(question)
    return failure or answer or ""


def _told(question: Callable[[], _Answer]) -> tuple[_Answer | None, str]:
    """The answer, or None and why there is none."""
    try:
        return question(), ""
    except Exception as error:
        return None, failure_text(error)


def failure_text(error: Exception) -> str:
    """The first line of what went wrong."""
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
    from cosmos_nemo.models.common.missing import te_missing

    reason = te_missing()
    return "torch, te" if reason is None else f"torch; not te: {reason}"


def _flash() -> str:
    import torch

    from cosmos_nemo.models.common.flash import flash_attention_3

    if flash_attention_3() is not None:
        return "FlashAttention 3"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
        return 'cuDNN; FlashAttention 3 is faster: pip install "cosmos-nemo[flash]"'
    return "PyTorch's; FlashAttention 3 is for Hopper GPUs alone"


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
    return f"{folder}, {_free_bytes(folder) / GIB:.1f} GiB free"


def _free_bytes(folder: Path) -> int:
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def _token() -> str:
    from huggingface_hub import get_token

    return "set" if get_token() else "not set: models whose licence must be accepted cannot be downloaded"


def _host_memory() -> int:
    """What the machine has, or a container of it may use."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(installed, int(text)) if text.isdigit() else installed


def _missing(card: ModelCard, checkpoint_dir: Path | None) -> "tuple[tuple[str, ...], tuple[HubFiles, ...]]":
    """The parts whose files are not all here, and what the hub has of them.

    What cannot be told counts as missing.
    """
    from cosmos_nemo.checkpoint.families import with_beside

    try:
        parts = _parts(card)
    except Exception as error:
        return (failure_text(error),), ()
    missing = {name: files for name, files in parts.items() if not _is_here(files, checkpoint_dir)}
    released = (each for files in missing.values() for each in with_beside(files) if each.is_released)
    return tuple(missing), tuple(released)


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
