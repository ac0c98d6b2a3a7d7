"""From an invocation to a job: everything that can be judged without reading a weight."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from cosmos_nemo.catalog import CatalogError, ModelCard, find_card
from cosmos_nemo.checkpoint.locate import LocateError
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.cli import Invocation
from cosmos_nemo.job.batch_file import BadLine, BatchFile, read_batch
from cosmos_nemo.job.files import card_with_files, check_files, find_files, identities, needs_of
from cosmos_nemo.job.job import Job
from cosmos_nemo.models.common.backend import BackendError, choose_backend
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.plan import Plan, make_plan, num_ranks_taking_part
from cosmos_nemo.request import RequestError, Setup, Text2WorldRequest, validate_request, validate_setup
from cosmos_nemo.sampling.samplers import SAMPLERS
from cosmos_nemo.stages.media import check_writable

PERSON_ERRORS = (RequestError, CatalogError, CheckpointError, LocateError, BackendError)


def prepare(invocation: Invocation, *, ranks: Ranks, environ: Mapping[str, str]) -> Job:
    """Checks the requests, finds (or downloads) the files, checks their headers and makes the plan.

    One of PERSON_ERRORS for anything that cannot work. Cheap checks come first: nothing is downloaded for a
    request that cannot be served.
    """
    setup = invocation.setup
    validate_setup(setup)
    card = find_card(setup.model)
    asked = _asked(invocation)
    needs = needs_of(card, setup)
    files = find_files(card, setup, needs, download=False)
    _serveable(asked, card_with_files(card, files))
    backend = choose_backend(setup.backend, environ)
    if ranks.rank == 0:
        check_writable(asked.requests[0].video_path)
    _plan(card_with_files(card, files), setup, asked, ranks, pretend=invocation.dry_run)
    if not (needs.are_met(files) or invocation.dry_run):
        files = find_files(card, setup, needs, download=True)
    card = card_with_files(card, files)
    asked = _serveable(asked, card)
    check_files(card, files)
    return Job(
        card=card,
        setup=setup,
        requests=asked.requests,
        bad_lines=asked.bad_lines,
        passed_over=asked.passed_over,
        is_batch=invocation.batch is not None,
        needs=needs.names,
        files=files,
        plan=_plan(card, setup, asked, ranks, pretend=invocation.dry_run),
        device=device_of(ranks),
        backend=backend,
        text_cache=_text_cache_folder(environ),
        identities=identities(files) if ranks.rank == 0 else {},
    )


def _asked(invocation: Invocation) -> BatchFile:
    """The lines of the batch file, or the one request as if it were such a line."""
    if invocation.batch is None:
        return BatchFile(requests=(invocation.request,))
    return read_batch(invocation.batch.path, template=invocation.request, folder=invocation.batch.folder)


def _serveable(asked: BatchFile, card: ModelCard) -> BatchFile:
    """What `card` can make of it, the rest as bad lines; RequestError if that is nothing."""
    good, bad = [], []
    for request in asked.requests:
        try:
            validate_request(request, card)
            _check_steps(request)
            good.append(request)
        except RequestError as error:
            if request.line_number is None:
                raise
            bad.append(BadLine(number=request.line_number, reason=str(error)))
    if not good:
        raise RequestError(bad[0].reason)
    bad_lines = sorted([*asked.bad_lines, *bad], key=lambda line: line.number)
    return replace(asked, requests=tuple(good), bad_lines=tuple(bad_lines))


def _plan(card: ModelCard, setup: Setup, asked: BatchFile, ranks: Ranks, *, pretend: bool) -> Plan:
    return make_plan(
        num_devices=num_ranks_taking_part(setup, ranks.num_ranks, pretend=pretend),
        num_heads=card.network.num_heads,
        num_branches=asked.requests[0].num_branches,
        cp_size=setup.cp_size,
        tensor_parallel=setup.tensor_parallel,
        cfg_parallel=setup.cfg_parallel,
        replicas=setup.replicas,
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
