"""One invocation, checked and decided: the card, the files, the plan, the device. No weight is read here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import CatalogError, ModelCard, find_card, with_overrides
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.fingerprint import fingerprint
from cosmos_nemo.checkpoint.locate import LocateError, locate, text_encoder_of, tokenizer_of, weights_of
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.cli import Invocation
from cosmos_nemo.models.common.backend import Backend, BackendError, choose_backend
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.plan import Plan, make_plan, num_ranks_taking_part
from cosmos_nemo.request import (
    RequestError,
    Setup,
    Text2WorldRequest,
    latent_shape,
    validate_request,
    validate_setup,
)
from cosmos_nemo.sampling.samplers import SAMPLERS
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.media import check_writable
from cosmos_nemo.stages.text_cache import TextCache
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.text_folder import check_text_folder
from cosmos_nemo.stages.tokenizer import Tokenizer

PERSON_ERRORS = (RequestError, CatalogError, CheckpointError, LocateError, BackendError)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the three models of a Text2World run lie; None for what a dry run did not find."""

    weights: Path | None
    tokenizer: Path | None
    text_encoder: Path | None

    @property
    def complete(self) -> bool:
        return None not in (self.weights, self.tokenizer, self.text_encoder)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything decided before the ranks connect; the same on every rank but for the device."""

    card: ModelCard
    setup: Setup
    request: Text2WorldRequest
    files: Files
    plan: Plan
    device: torch.device
    backend: Backend
    text_cache: Path | None
    identities: Mapping[str, Mapping[str, str]]
    """Of each file: its path and fingerprint, taken before it is read; on rank 0, which writes them down."""

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16, as released, where a GPU computes; float32 on the CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def text_encoder_dtype(self) -> torch.dtype:
        """As asked, else as the network. In bfloat16 a CPU's result would depend on its number of threads."""
        asked = self.setup.text_encoder_dtype
        return self.dtype if asked == "auto" else getattr(torch, asked)

    def facts(self) -> dict[str, Any]:
        """What the manifest says of this job: how to make the same video again, and from which weights."""
        return {
            "model": self.card.name,
            "request": {
                name: str(v) if isinstance(v, Path) else v for name, v in asdict(self.request).items()
            },
            "files": dict(self.identities),
            "plan": asdict(self.plan),
            "backend": self.backend.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rope_dtype": self.setup.rope_dtype,
            "text_encoder_dtype": str(self.text_encoder_dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "guardrail": "none ran: this version has no guardrails yet",
        }


def prepare(invocation: Invocation, *, ranks: Ranks, environ: Mapping[str, str]) -> Job:
    """Checks the request, finds (or downloads) the files, checks their headers and makes the plan.

    One of PERSON_ERRORS for anything that cannot work. Cheap checks come first: nothing is downloaded for a
    request that cannot be served.
    """
    setup, request = invocation.setup, invocation.request
    validate_setup(setup)
    card = find_card(setup.model)
    here = _locate(card, setup, download=False)
    local_card = _card_of(card, here)
    validate_request(request, local_card)
    _check_steps(request)
    plan = _plan(local_card, setup, request, ranks, pretend=invocation.dry_run)
    backend = choose_backend(setup.backend, environ)
    if ranks.rank == 0:
        check_writable(request.video_path)
    files = here if here.complete or invocation.dry_run else _locate(card, setup, download=True)
    card = _card_of(card, files)
    validate_request(request, card)
    _check_files(card, files)
    return Job(
        card=card,
        setup=setup,
        request=request,
        files=files,
        plan=plan,
        device=device_of(ranks),
        backend=backend,
        text_cache=_text_cache_folder(environ),
        identities=_identities(files) if ranks.rank == 0 and files.complete else {},
    )


def describe(job: Job) -> str:
    """What a dry run prints: the request, the plan and the files."""
    request, shape = job.request, latent_shape(job.request, job.card)
    patch = job.card.network.patch_size
    calls = SAMPLERS[request.sampler].num_calls(request.num_steps)
    tokens = shape[2] * (shape[3] // patch) * (shape[4] // patch)
    lines = [
        f"{job.card.name}: {request.num_frames} frames of {request.width} x {request.height} "
        f"at {request.fps} fps, seed {request.seed}, to {request.video_path}",
        f"latent {shape[2]} x {shape[3]} x {shape[4]}, {tokens:,} tokens; {request.sampler}, "
        f"{request.num_steps} steps, guidance {request.guidance:g}: "
        f"{calls * request.num_branches} network calls",
        f"{job.plan.num_ranks} rank(s): {job.plan}; back end {job.backend.name} in {str(job.dtype)[6:]}",
    ]
    names = {"weights": "network", "tokenizer": "tokenizer", "text_encoder": "text encoder"}
    for field, name in names.items():
        path = getattr(job.files, field)
        lines.append(
            f"{name}: {path if path is not None else 'not here; a run would look for it on the hub'}"
        )
    return "\n".join(lines)


def text_encoder_stage(job: Job, groups: Groups) -> TextEncoder:
    assert job.files.text_encoder is not None
    return TextEncoder(
        folder=job.files.text_encoder,
        text_length=job.card.network.text_length,
        text_dim=job.card.network.text_dim,
        device=job.device,
        dtype=job.text_encoder_dtype,
        offload="text_encoder" in job.setup.offload,
        group=groups.world,
        cache=TextCache(job.text_cache) if job.text_cache is not None else None,
    )


def denoise_stage(job: Job, groups: Groups) -> Denoise:
    assert job.files.weights is not None
    return Denoise(
        card=job.card,
        checkpoint=job.files.weights,
        groups=groups,
        backend=job.backend,
        device=job.device,
        dtype=job.dtype,
        rope_dtype=getattr(torch, job.setup.rope_dtype),
        offload="denoise" in job.setup.offload,
    )


def tokenizer_stage(job: Job) -> Tokenizer:
    assert job.files.tokenizer is not None
    return Tokenizer(
        shape=job.card.tokenizer,
        folder=job.files.tokenizer,
        device=job.device,
        dtype=job.dtype,
        offload="tokenizer" in job.setup.offload,
        parts=("decoder",),
    )


def _locate(card: ModelCard, setup: Setup, *, download: bool) -> Files:
    return Files(
        weights=locate(
            weights_of(card), given=setup.nemo_checkpoint, assets_dir=setup.assets_dir, download=download
        ),
        tokenizer=locate(
            tokenizer_of(card), given=setup.tokenizer_dir, assets_dir=setup.assets_dir, download=download
        ),
        text_encoder=locate(
            text_encoder_of(card),
            given=setup.text_encoder_dir,
            assets_dir=setup.assets_dir,
            cache_dir=setup.t5_cache_dir,
            download=download,
        ),
    )


def _identities(files: Files) -> dict[str, dict[str, str]]:
    """A NeMo checkpoint's fingerprint is the same whichever of its folders was named."""
    assert files.weights and files.tokenizer and files.text_encoder
    return {
        "weights": {
            "path": str(files.weights),
            "fingerprint": fingerprint(open_checkpoint(files.weights).path),
        },
        "tokenizer": {"path": str(files.tokenizer), "fingerprint": fingerprint(files.tokenizer)},
        "text_encoder": {"path": str(files.text_encoder), "fingerprint": fingerprint(files.text_encoder)},
    }


def _card_of(card: ModelCard, files: Files) -> ModelCard:
    """`card` with what the found files' card.json say."""
    for path in (files.weights, files.tokenizer):
        if path is not None:
            card = with_overrides(card, read_card_file(path))
    return card


def _check_files(card: ModelCard, files: Files) -> None:
    """CheckpointError unless the headers of all found files are those of this card."""
    if files.weights is not None:
        network_rules(card.network, open_checkpoint(files.weights))
    if files.tokenizer is not None:
        Tokenizer(
            shape=card.tokenizer,
            folder=files.tokenizer,
            device=torch.device("cpu"),
            dtype=torch.float32,
            parts=("decoder",),
        ).check()
    if files.text_encoder is not None:
        check_text_folder(files.text_encoder, text_dim=card.network.text_dim)


def _plan(card: ModelCard, setup: Setup, request: Text2WorldRequest, ranks: Ranks, *, pretend: bool) -> Plan:
    return make_plan(
        num_devices=num_ranks_taking_part(setup, ranks.num_ranks, pretend=pretend),
        num_heads=card.network.num_heads,
        num_branches=request.num_branches,
        cp_size=setup.cp_size,
        tensor_parallel=setup.tensor_parallel,
        cfg_parallel=setup.cfg_parallel,
    )


def device_of(ranks: Ranks) -> torch.device:
    """This rank's GPU: its own by local rank, or the only one that Slurm lets its task see."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 1 and not ranks.store_is_hosted:
        return torch.device("cuda", 0)
    if ranks.local_rank >= visible:
        raise RequestError(
            f"{ranks.local_rank + 1} ranks or more run on this host, which shows {visible} GPU(s). "
            f"Start at most {visible} a host (torchrun --nproc_per_node={visible})."
        )
    return torch.device("cuda", ranks.local_rank)


def _check_steps(request: Text2WorldRequest) -> None:
    """A sampler may need more steps than one, or steps that are not too small."""
    try:
        SAMPLERS[request.sampler].num_calls(request.num_steps)
    except ValueError as error:
        raise RequestError(f"--num_steps {request.num_steps} --sampler {request.sampler}: {error}") from None


def _text_cache_folder(environ: Mapping[str, str]) -> Path | None:
    """$COSMOS_NEMO_CACHE/text, by default under the user's cache folder; an empty value turns it off."""
    root = environ.get("COSMOS_NEMO_CACHE")
    if root is None:
        base = environ.get("XDG_CACHE_HOME") or environ.get("HOME")
        if base is None:
            return None
        root = str(Path(base) / ("cosmos_nemo" if environ.get("XDG_CACHE_HOME") else ".cache/cosmos_nemo"))
    return Path(root) / "text" if root else None
