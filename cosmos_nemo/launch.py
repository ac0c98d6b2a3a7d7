"""Runs an invocation on this rank: groups, stages, files, exit status.

Here and in the doors alone the environment is read and something is printed.
Exit status: 0 everything written, 2 a bad request, flag or checkpoint, 3 a guardrail blocked something,
130 interrupted, 143 terminated while writing, 1 anything else, a bad line of a batch file among it.
"""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.cli import Invocation
from cosmos_nemo.cli.flags import OtherDoorsFlag
from cosmos_nemo.console import set_up_logging
from cosmos_nemo.parallel.environment import Ranks, ranks_from
from cosmos_nemo.parallel.startup import prepare_process
from cosmos_nemo.plan import num_ranks_taking_part
from cosmos_nemo.request import RequestError

if TYPE_CHECKING:
    from cosmos_nemo.job import Job
    from cosmos_nemo.parallel.company import Company

_PACKAGES = (
    "cosmos_nemo",
    "torch",
    "megatron-core",
    "transformers",
    "diffusers",
    "transformer-engine",
    "flash-attn-3",
    "fa3-fwd",
    "numpy",
)
_FLAG = re.compile(r"--[a-z][a-z0-9_]*")
_ABOUT_MEMORY = (
    "The GPU's memory does not suffice. --dry_run predicts what is needed, stage by stage; --offload all "
    "parks every model in host memory while another one works (docs/memory.md, docs/troubleshooting.md)."
)
_THE_SAME: Mapping[str, str] = MappingProxyType({})
_BAD_REQUEST, _BLOCKED, _FAILED, _INTERRUPTED, _TERMINATED = 2, 3, 1, 130, 143


class Asked(Protocol):
    """What a person asked a door for."""

    @property
    def dry_run(self) -> bool: ...


T = TypeVar("T", bound=Asked)


def run(
    parse: Callable[[], Invocation],
    *,
    flag_names: Mapping[str, str] = _THE_SAME,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """The exit status of an inference door on this rank; arguments as of run_ranks."""
    serve = functools.partial(_serve, flag_names=flag_names)
    return run_ranks(parse, num_ranks=_num_ranks, serve=serve, flag_names=flag_names, environ=environ)


def run_ranks(
    parse: Callable[[], T],
    *,
    num_ranks: Callable[[T, int], int],
    serve: Callable[[T, "Company", Mapping[str, str]], int],
    flag_names: Mapping[str, str] = _THE_SAME,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """The exit status of a door or tool that runs on several ranks, on this one.

    `num_ranks` says how many of the started ranks take part; `serve` does the work and gives the status.
    `flag_names`: what this door calls flags of general.py, for the errors of whatever lies below the doors.
    What can be judged from the arguments alone is judged first, by every rank for itself. The ranks meet
    before anything that one of them alone could fail at: then the others learn of it.
    """
    ranks, complain = ranks_from(environ), Complain(flag_names)
    try:
        asked = parse()
        taking_part = num_ranks(asked, ranks.num_ranks)
    except (RequestError, CatalogError) as error:
        if ranks.rank == 0:
            complain(error)
        return _BAD_REQUEST
    try:
        # Only now: torch and Megatron take seconds to import, which --help and a bad flag need not wait for.
        set_up_logging(verbose=ranks.rank == 0)
        prepare_process()
        _let_gloo_meet_itself(ranks)
        status = _in_company(
            asked, ranks, taking_part, lambda company: serve(asked, company, environ), complain
        )
    except KeyboardInterrupt:
        status = _INTERRUPTED
    if ranks.num_ranks > 1:
        # The usual exit would tear down NCCL, which waits for ranks that are gone, and gloo, which was seen
        # to abort with everything written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _num_ranks(invocation: Invocation, started: int) -> int:
    return num_ranks_taking_part(invocation.setup, started, pretend=invocation.dry_run)


def _in_company(
    asked: Asked, ranks: Ranks, num_ranks: int, serve: Callable[["Company"], int], complain: "Complain"
) -> int:
    from cosmos_nemo.parallel.company import Company, open_store

    try:
        company = Company(ranks, open_store(ranks))
    except RuntimeError as error:
        complain(f"rank {ranks.rank} cannot meet the others at {ranks.address}:{ranks.port}: {error}")
        return _FAILED
    status = _FAILED
    try:
        if ranks.rank >= num_ranks and not asked.dry_run:
            print(f"rank {ranks.rank} is idle: --num_devices leaves it out", flush=True)
            status = company.wait_for_status()
        else:
            status = _guarded(lambda: serve(company), company, num_ranks, complain)
    except RuntimeError:  # rank 0 hosts the store and is gone
        status = _FAILED
    finally:
        company.leave(status)
    return status


def _guarded(work: Callable[[], int], company: "Company", num_ranks: int, complain: "Complain") -> int:
    """Status of `work`; a failure is shown by the first rank that has one, and reported to all.

    The watchdog rests while a failure is handled: another rank's must not interrupt that.
    """
    from cosmos_nemo.parallel.company import Company, open_store
    from cosmos_nemo.parallel.groups import stop
    from cosmos_nemo.parallel.watchdog import Watchdog

    connection = (
        company
        if company.ranks.num_ranks == 1
        else Company(company.ranks, open_store(company.ranks, host=False))
    )
    watchdog = Watchdog(connection, num_ranks=min(num_ranks, company.ranks.num_ranks))
    try:
        with watchdog:
            status = work()
        stop()
        return status
    except KeyboardInterrupt:
        if watchdog.lost is not None:
            return watchdog.lost.status
        status, shown = _INTERRUPTED, "interrupted; nothing half-written is left"
    except SystemExit:  # see items._terminated_like_any_exit
        status, shown = _TERMINATED, "terminated; nothing half-written is left"
    except Exception as error:
        status, shown = _status_and_text(error, company.ranks)
    if _is_first_failure(company, shown, status=status):
        complain(shown)
    if num_ranks == 1:
        stop()
    return status


def _is_first_failure(company: "Company", shown: str, *, status: int) -> bool:
    try:
        return company.fail(shown.strip().splitlines()[-1], status=status)
    except RuntimeError:  # the store is gone with its host, which cannot have shown this
        return True


def _status_and_text(error: Exception, ranks: Ranks) -> tuple[int, str]:
    """A sentence for what a person can mend, a traceback for everything else."""
    from cosmos_nemo.job import PERSON_ERRORS
    from cosmos_nemo.stages.guardrail.outcome import GuardrailUnavailable
    from cosmos_nemo.stages.item_error import ItemError
    from cosmos_nemo.stages.prompt_upsampler import UpsamplerError

    if isinstance(error, PERSON_ERRORS):
        return _BAD_REQUEST, f"{type(error).__name__}: {error}"
    if isinstance(error, GuardrailUnavailable | ItemError | UpsamplerError):
        return _FAILED, f"{type(error).__name__}: {error}"
    shown = f"rank {ranks.rank} failed:\n{traceback.format_exc()}"
    is_told = not _is_out_of_memory(error) or getattr(error, "__notes__", [])
    return _FAILED, shown if is_told else f"{shown.rstrip()}\n{_ABOUT_MEMORY}"


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _serve(
    invocation: Invocation,
    company: "Company",
    environ: Mapping[str, str],
    *,
    flag_names: Mapping[str, str] = _THE_SAME,
) -> int:
    from cosmos_nemo.job import describe, prepare

    job = prepare(invocation, ranks=company.ranks, environ=environ)
    if not invocation.dry_run:
        return _make(job, company, flag_names=flag_names)
    if company.ranks.rank == 0:
        print(in_own_names(describe(job), flag_names))
    return 0


def _make(job: "Job", company: "Company", *, flag_names: Mapping[str, str]) -> int:
    from cosmos_nemo.items import make_items
    from cosmos_nemo.job.describe import computed_by, remarks
    from cosmos_nemo.job.stages import pipeline_of
    from cosmos_nemo.parallel.groups import start
    from cosmos_nemo.parallel.rank_zero import rank_zero
    from cosmos_nemo.parallel.turns import Turns

    check_same_device(company, job.device.type)
    groups = start(company.ranks, plan=job.plan, store=company.store, device=job.device)
    job = replace(job, **rank_zero(lambda: job.from_rank_zero, groups.world))
    if groups.rank == 0:
        print(f"{job.card.name} on {job.plan.num_ranks} rank(s): {job.plan}; {computed_by(job)}")
        for line in remarks(job):
            print(in_own_names(line, flag_names))
    with _memory_told(job):
        tally = make_items(
            job,
            pipeline_of(job, groups),
            groups,
            tell=lambda line: print(line, flush=True),
            on_progress=_progress if groups.rank == 0 else lambda name: None,
            versions=versions(),
            turns=Turns(company.store, groups),
        )
    if groups.rank == 0 and job.is_batch:
        print(
            f"{tally.made} {job.request.made}s made, {tally.found} were there, {tally.blocked} blocked, "
            f"{tally.failed} failed, {len(job.bad_lines)} bad lines"
        )
    return _FAILED if job.bad_lines or tally.failed else _BLOCKED if tally.blocked else 0


@contextmanager
def _memory_told(job: "Job") -> Iterator[None]:
    """Adds to an error of the device's memory which stage had too little, and what would help."""
    from cosmos_nemo.job.predicted import out_of_memory
    from cosmos_nemo.stages.base import stage_without_memory

    try:
        yield
    except Exception as error:
        stage = stage_without_memory(error)
        if stage is not None and (told := out_of_memory(job, stage)) is not None:
            error.add_note(told)
        raise


def check_same_device(company: "Company", device_type: str) -> None:
    """RequestError on a rank that computes on another kind of device than rank 0."""
    if (theirs := company.agree_on_device(device_type)) is not None:
        raise RequestError(
            f"rank {company.ranks.rank} computes on {device_type}, but rank 0 on {theirs}: "
            "start all ranks where the same kind of device is visible."
        )


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _progress(name: str) -> Callable[[int, int], None]:
    """Shows the network calls of one sample, or the tokens drawn of a video."""
    from tqdm import tqdm

    from cosmos_nemo.pipelines.base import DRAWING

    bar: tqdm[Any] | None = None
    counts_calls = name != DRAWING

    def advance(step: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=name, total=total, unit="call" if counts_calls else "token", dynamic_ncols=True)
        bar.update(step - bar.n)
        if step == total:
            bar.close()
            bar = None

    return advance


def _let_gloo_meet_itself(ranks: Ranks) -> None:
    """gloo asks the resolver for this host's name, which a laptop's or a container's may not know."""
    if ranks.address in ("localhost", "127.0.0.1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


@dataclass(frozen=True)
class Complain:
    """Tells a person what went wrong, in the names that their door has for its flags."""

    flag_names: Mapping[str, str]

    def __call__(self, what: object) -> None:
        text = f"{type(what).__name__}: {what}" if isinstance(what, Exception) else str(what)
        own = text if isinstance(what, OtherDoorsFlag) else in_own_names(text, self.flag_names)
        sys.stderr.write(f"{own.rstrip()}\n")
        sys.stderr.flush()


def in_own_names(text: str, flag_names: Mapping[str, str]) -> str:
    """`text` with the names that a door has for the flags of general.py in it."""
    return _FLAG.sub(lambda found: flag_names.get(found[0], found[0]), text)
