"""From an invocation to a job: everything that can be judged without reading a weight."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from cosmos_nemo.catalog import CatalogError, Family, ModelCard, find_card
from cosmos_nemo.checkpoint.locate import LocateError
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.cli import Invocation
from cosmos_nemo.job.batch_file import BadLine, BatchFile, read_batch
from cosmos_nemo.job.files import card_with_files, check_files, find_files, identities, needs_of
from cosmos_nemo.job.image_batch import read_image_batch
from cosmos_nemo.job.job import Job
from cosmos_nemo.job.visual_inputs import VisualInputs
from cosmos_nemo.models.common.backend import choose_backend
from cosmos_nemo.models.common.missing import BackendError
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.plan import Plan, make_plan, num_ranks_taking_part
from cosmos_nemo.request import (
    REQUESTS,
    AutoregressiveRequest,
    RequestError,
    Setup,
    Text2ImageRequest,
    Text2WorldRequest,
    VisualRequest,
    validate_request,
    validate_setup,
)
from cosmos_nemo.sampling.samplers import SAMPLERS
from cosmos_nemo.sampling.tokens import TokenSampling
from cosmos_nemo.stages.diffusion_decoder import DECODER_SAMPLERS
from cosmos_nemo.stages.media import check_writable
from cosmos_nemo.stages.token_generation import LogitsError

logger = logging.getLogger(__name__)

PERSON_ERRORS = (RequestError, CatalogError, CheckpointError, LocateError, BackendError, LogitsError)


def prepare(invocation: Invocation, *, ranks: Ranks, environ: Mapping[str, str]) -> Job:
    """Checks the requests, finds (or downloads) the files, checks their headers and makes the plan.

    One of PERSON_ERRORS for anything that cannot work. Cheap checks come first: nothing is downloaded for a
    request that cannot be served. Rank 0 alone looks at visual inputs, and may have bad lines that the other
    ranks learn of by Job.from_rank_zero.
    """
    setup = invocation.setup
    validate_setup(setup)
    card = find_card(setup.model)
    asked = _asked(invocation)
    needs = needs_of(card, setup)
    files = find_files(card, setup, needs, download=False)
    _serveable(asked, card_with_files(card, files), setup)
    _check_precision(card, setup)
    backend = choose_backend(setup.backend, environ, precision=setup.precision)
    if ranks.rank == 0:
        asked = _writable(asked)
    _plan(card_with_files(card, files), setup, asked, ranks, pretend=invocation.dry_run)
    visual_inputs = VisualInputs(asked.requests)
    if ranks.rank == 0:
        for remark in invocation.remarks:
            logger.warning("%s", remark)
        _warn_of_prompt(invocation)
        asked = _judged(asked, visual_inputs.check)
    if not (needs.are_met(files) or invocation.dry_run):
        files = find_files(card, setup, needs, download=True)
    card = card_with_files(card, files)
    asked = _serveable(asked, card, setup)
    check_files(card, files, averaged=setup.averaged)
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
        visual_inputs=visual_inputs.found,
    )


def _asked(invocation: Invocation) -> BatchFile:
    """The lines of the batch file, or the one request as if it were such a line."""
    if invocation.batch is None:
        return BatchFile(requests=(invocation.request,))
    if isinstance(invocation.request, Text2ImageRequest):
        return read_image_batch(invocation.batch.path, template=invocation.request)
    return read_batch(
        invocation.batch.path,
        template=invocation.request,
        folder=invocation.batch.folder,
        prompt_is_made=_prompt_is_made(invocation.request, invocation.setup),
        prompt_is_read=_prompt_is_read(invocation.setup),
    )


def _prompt_is_made(request: Text2WorldRequest, setup: Setup) -> bool:
    """By the upsampler that describes the visual input, whatever the prompt is; or none is read at all."""
    reads_none = isinstance(request, AutoregressiveRequest)
    return reads_none or (setup.upsamples and isinstance(request, VisualRequest))


def _prompt_is_read(setup: Setup) -> bool:
    """By an upsampler that describes the visual input: Predict2's joins it with the prompt."""
    return find_card(setup.model).network.family is Family.PREDICT2


def _warn_of_prompt(invocation: Invocation) -> None:
    request, setup = invocation.request, invocation.setup
    if request.prompt and _prompt_is_made(request, setup) and not _prompt_is_read(setup):
        logger.warning(
            "--prompt is not used: the prompt upsampler describes the visual input instead. "
            "For a prompt of your own, leave the upsampler out."
        )


def _serveable(asked: BatchFile, card: ModelCard, setup: Setup) -> BatchFile:
    """What `card` can make of it; see _judged."""

    def check(request: Text2WorldRequest) -> None:
        _check_task(request, card)
        validate_request(request, card, prompt_is_made=_prompt_is_made(request, setup))
        _check_steps(request)
        _check_draws(request)

    return _judged(_in_own_size(asked, card), check)


def _check_precision(card: ModelCard, setup: Setup) -> None:
    if setup.precision == "bf16" or card.tokens is None:
        return
    if not (card.has_diffusion_decoder and setup.decodes_by_diffusion):
        raise RequestError(
            f"--precision {setup.precision} is for a diffusion network, and this run of {card.name} "
            "has none. Leave it out."
        )


def _in_own_size(asked: BatchFile, card: ModelCard) -> BatchFile:
    """Autoregressive models make videos of one size, which a checkpoint's card.json may change."""
    if card.tokens is None:
        return asked
    video = card.video
    requests = (
        replace(request, height=video.height, width=video.width, num_frames=video.num_frames)
        for request in asked.requests
    )
    return replace(asked, requests=tuple(requests))


def _writable(asked: BatchFile) -> BatchFile:
    """What can be written where it goes. The videos of a batch go into one folder, images anywhere."""
    if isinstance(asked.requests[0], Text2ImageRequest):
        return _judged(asked, lambda request: check_writable(request.video_path))
    check_writable(asked.requests[0].video_path)
    return asked


def _judged(asked: BatchFile, check: Callable[[Text2WorldRequest], None]) -> BatchFile:
    """What `check` does not refuse, the rest as bad lines; RequestError if that is nothing."""
    good, bad = [], []
    for request in asked.requests:
        try:
            check(request)
            good.append(request)
        except RequestError as error:
            if request.line_number is None:
                raise
            unit = "entry" if isinstance(request, Text2ImageRequest) else BadLine.unit
            bad.append(BadLine(number=request.line_number, reason=str(error), unit=unit))
    if not good:
        raise RequestError(bad[0].reason)
    bad_lines = sorted([*asked.bad_lines, *bad], key=lambda line: line.number)
    return replace(asked, requests=tuple(good), bad_lines=tuple(bad_lines))


def _plan(card: ModelCard, setup: Setup, asked: BatchFile, ranks: Ranks, *, pretend: bool) -> Plan:
    return make_plan(
        num_devices=num_ranks_taking_part(setup, ranks.num_ranks, pretend=pretend),
        num_heads=_num_heads(card),
        num_branches=asked.requests[0].num_branches,
        cp_size=setup.cp_size,
        tensor_parallel=setup.tensor_parallel,
        cfg_parallel=setup.cfg_parallel,
        replicas=setup.replicas,
    )


def _num_heads(card: ModelCard) -> int:
    """That tensor parallel ranks share; of a token transformer those of its keys and values, the fewest."""
    if card.tokens is None:
        return card.network.num_heads
    return math.gcd(card.network.num_heads, card.tokens.network.num_kv_heads)


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


def _check_task(request: Text2WorldRequest, card: ModelCard) -> None:
    """The doors ask the named card; the checkpoint's card.json may say something else."""
    if type(request) is not REQUESTS[card.task]:
        raise RequestError(
            f"The card.json of the checkpoint makes {card.name} a model for {card.task.value}, which this "
            "script does not run. Is it another model's checkpoint?"
        )


def _check_steps(request: Text2WorldRequest) -> None:
    """A sampler may need more steps than one, or steps that are not too small."""
    samplers = DECODER_SAMPLERS if isinstance(request, AutoregressiveRequest) else SAMPLERS
    if request.sampler not in samplers:
        raise RequestError(f"--sampler {request.sampler} is none of the decoder's: {', '.join(samplers)}.")
    try:
        samplers[request.sampler].num_calls(request.num_steps)
    except ValueError as error:
        raise RequestError(f"--num_steps {request.num_steps} --sampler {request.sampler}: {error}") from None


def _check_draws(request: Text2WorldRequest) -> None:
    """RequestError for a way to draw tokens that there is not."""
    if not isinstance(request, AutoregressiveRequest):
        return
    try:
        TokenSampling(temperature=request.temperature, top_p=request.top_p, top_k=request.top_k)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _text_cache_folder(environ: Mapping[str, str]) -> Path | None:
    """$COSMOS_NEMO_CACHE/text, by default under the user's cache folder; an empty value turns it off."""
    root = environ.get("COSMOS_NEMO_CACHE")
    if root is None:
        base = environ.get("XDG_CACHE_HOME") or environ.get("HOME")
        if base is None:
            return None
        root = str(Path(base) / ("cosmos_nemo" if environ.get("XDG_CACHE_HOME") else ".cache/cosmos_nemo"))
    return Path(root) / "text" if root else None
