"""Runs an invocation on this rank: groups, stages, files, exit status.

Here and in the doors alone the environment is read and something is printed.
Exit status: 0 everything written, 2 a bad request, flag or checkpoint, 1 anything else.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.cli import Invocation
from cosmos_nemo.console import set_up_logging
from cosmos_nemo.parallel.environment import Ranks, ranks_from
from cosmos_nemo.request import RequestError

if TYPE_CHECKING:
    from torch.distributed import Store

    from cosmos_nemo.job import Job
    from cosmos_nemo.parallel.groups import Groups
    from cosmos_nemo.parallel.watchdog import Watchdog
    from cosmos_nemo.pipelines.text2world import Text2World, Video

_PACKAGES = (
    "cosmos_nemo",
    "torch",
    "megatron-core",
    "transformers",
    "diffusers",
    "transformer-engine",
    "numpy",
)
_BAD_REQUEST, _FAILED, _INTERRUPTED = 2, 1, 130
_PATIENCE = timedelta(seconds=15)


def run(parse: Callable[[], Invocation], *, environ: Mapping[str, str] = os.environ) -> int:
    """The exit status of a door on this rank.

    Every rank checks the request for itself, so that a bad one ends before any connects.
    """
    ranks = ranks_from(environ)
    try:
        invocation = parse()
    except (RequestError, CatalogError) as error:
        _complain(ranks, error)
        return _BAD_REQUEST
    set_up_logging(verbose=ranks.rank == 0)
    # Only now: torch and Megatron take seconds to import, which --help and a bad flag need not wait for.
    from cosmos_nemo.job import PERSON_ERRORS, describe, prepare

    try:
        job = prepare(invocation, ranks=ranks, environ=environ)
    except PERSON_ERRORS as error:
        _complain(ranks, error)
        if not isinstance(error, RequestError | CatalogError):
            _tell_others(ranks, error)
        return _BAD_REQUEST
    if invocation.dry_run:
        if ranks.rank == 0:
            print(describe(job))
        return 0
    return _take_part(job, ranks)


def _take_part(job: "Job", ranks: Ranks) -> int:
    from cosmos_nemo.parallel.groups import open_store, stop
    from cosmos_nemo.parallel.watchdog import Watchdog

    store = open_store(ranks)
    if ranks.rank >= job.plan.num_ranks:
        return _idle(store, ranks)
    beats = open_store(ranks, host=False) if ranks.num_ranks > 1 else store
    watchdog = Watchdog(beats, rank=ranks.rank, num_ranks=job.plan.num_ranks)
    status = _guarded(lambda: _make(job, ranks, store), ranks, watchdog)
    if status == 0 or job.plan.num_ranks == 1:
        stop()
    if ranks.rank == 0:
        _dismiss_idle(store, ranks.num_ranks - job.plan.num_ranks, status)
    if ranks.num_ranks > 1:
        # The usual exit would tear down NCCL, which waits for ranks that are gone, and gloo, which was seen
        # to abort with everything written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _guarded(work: Callable[[], None], ranks: Ranks, watchdog: "Watchdog") -> int:
    """Status of `work`; a failure is printed here and reported to the other ranks.

    The watchdog rests while a failure is handled: another rank's must not interrupt that.
    """
    from cosmos_nemo.job import PERSON_ERRORS

    try:
        with watchdog:
            work()
        return 0
    except KeyboardInterrupt:
        if watchdog.lost is not None:
            return _FAILED
        _complain(ranks, "interrupted; nothing half-written is left")
        watchdog.report("interrupted")
        return _INTERRUPTED
    except PERSON_ERRORS as error:
        _complain(ranks, error)
        watchdog.report(str(error))
        return _BAD_REQUEST
    except Exception as error:
        sys.stderr.write(f"rank {ranks.rank} failed:\n{traceback.format_exc()}")
        watchdog.report(f"{type(error).__name__}: {error}")
        return _FAILED


def _make(job: "Job", ranks: Ranks, store: "Store") -> None:
    from cosmos_nemo.parallel.groups import start
    from cosmos_nemo.parallel.rank_zero import only_rank_zero

    groups = start(ranks, plan=job.plan, store=store, device=job.device)
    pipeline = _text2world(job, groups)
    if ranks.rank == 0:
        print(f"{job.card.name} on {job.plan.num_ranks} rank(s): {job.plan}; back end {job.backend.name}")
    video = pipeline(job.request, on_step=_progress(ranks))
    only_rank_zero(lambda: _write(job, pipeline, video), groups.world)


def _text2world(job: "Job", groups: "Groups") -> "Text2World":
    from cosmos_nemo.job import denoise_stage, text_encoder_stage, tokenizer_stage
    from cosmos_nemo.pipelines.text2world import Text2World

    return Text2World(
        text_encoder=text_encoder_stage(job, groups),
        denoise=denoise_stage(job, groups),
        tokenizer=tokenizer_stage(job),
        world=groups.world,
    )


def _write(job: "Job", pipeline: "Text2World", video: "Video") -> None:
    from cosmos_nemo.stages.media import write_video

    assert video.frames_THWC is not None
    manifest = {**job.facts(), **_costs(pipeline), "versions": _versions()}
    path = job.request.video_path
    write_video(video.frames_THWC, path, fps=video.fps, prompt=video.prompt, manifest=manifest)
    for stage in pipeline.stages:
        costs = stage.costs
        print(
            f"  {stage.name:<13}{costs.seconds:8.1f} s  of which loading {costs.load_seconds:.1f} s"
            + (f"  peak {costs.peak_bytes / 2**30:.1f} GiB" if costs.peak_bytes else "")
        )
    print(f"wrote {path}")


def _costs(pipeline: "Text2World") -> dict[str, Any]:
    return {
        "stages": {
            stage.name: {
                "seconds": round(stage.costs.seconds, 3),
                "load_seconds": round(stage.costs.load_seconds, 3),
                "peak_bytes": stage.costs.peak_bytes,
            }
            for stage in pipeline.stages
        }
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _progress(ranks: Ranks) -> Callable[[int, int], None] | None:
    if ranks.rank != 0:
        return None
    from tqdm import tqdm

    bar: tqdm[Any] | None = None

    def advance(step: int, total: int) -> None:
        nonlocal bar
        if step == 1:
            bar = tqdm(desc="denoise", total=total, unit="call", dynamic_ncols=True)
        assert bar is not None
        bar.update()
        if step == total:
            bar.close()

    return advance


def _idle(store: "Store", ranks: Ranks) -> int:
    """Waits for rank 0's status, which becomes this rank's."""
    from cosmos_nemo.parallel.watchdog import FAILED

    print(f"rank {ranks.rank} is idle: --num_devices leaves it out", flush=True)
    try:
        while not store.check(["status"]):
            if store.check([FAILED]):
                return _FAILED
            time.sleep(0.5)
        status = int(store.get("status"))
        store.add("dismissed", 1)
        return status
    except RuntimeError:  # rank 0 hosts the store and is gone
        return _FAILED


def _dismiss_idle(store: "Store", num_idle: int, status: int) -> None:
    """Gives idle ranks the status, and waits until they have it: this rank may host the store."""
    if num_idle == 0:
        return
    store.set("status", str(status))
    deadline = time.monotonic() + 30
    while store.add("dismissed", 0) < num_idle and time.monotonic() < deadline:
        time.sleep(0.2)


def _tell_others(ranks: Ranks, error: Exception) -> None:
    """Files can be bad for one rank alone, on its node; those that already wait for it must not wait on."""
    if ranks.num_ranks == 1:
        return
    from cosmos_nemo.parallel.groups import open_store
    from cosmos_nemo.parallel.watchdog import report

    try:
        report(open_store(ranks, patience=_PATIENCE), rank=ranks.rank, message=str(error))
    except RuntimeError:  # no store: rank 0 has not come so far, or is gone
        return


def _complain(ranks: Ranks, error: object) -> None:
    if ranks.local_rank == 0:
        where = f" (rank {ranks.rank})" if ranks.rank else ""
        kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
        sys.stderr.write(f"{kind}{error}{where}\n")
        sys.stderr.flush()
