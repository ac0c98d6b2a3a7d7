"""The videos of a job, one after the other: made, passed over because they are there, or blocked."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from cosmos_nemo.job import Job
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.parallel.rank_zero import only_rank_zero, rank_zero
from cosmos_nemo.parallel.turns import Turns
from cosmos_nemo.pipelines.base import OnProgress, Pipeline, Video
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.stages.base import Costs, Stage
from cosmos_nemo.stages.guardrail.outcome import Blocked
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.media import write_blocked, write_video
from cosmos_nemo.stages.records import Past, past_lines, resume

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]
AnyPipeline = Pipeline[Any]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many videos of a job ended in which way."""

    made: int = 0
    found: int = 0
    """An earlier run had made them."""
    blocked: int = 0
    failed: int = 0
    """They cannot be made, for a reason of their own."""

    def with_one(self, outcome: str) -> "Tally":
        return replace(self, **{outcome: getattr(self, outcome) + 1})


def make_items(
    job: Job,
    pipeline: AnyPipeline,
    groups: Groups,
    *,
    tell: Tell,
    on_progress: OnProgress,
    versions: Mapping[str, str],
    turns: Turns,
) -> Tally:
    """Makes what is still to be made, a few at a time; the tally of all replicas, on every rank.

    tell: gets lines for people, on the first rank of each replica. on_progress: see Pipeline. In a batch,
    Blocked and ItemError are the end of one video. Whatever else a rank raises ends the run: what is written
    by then stays.
    """
    pasts = rank_zero(lambda: _pasts(job), groups.world)
    tally = Tally()
    if groups.rank == 0:
        tally = Tally(found=pasts.count(Past.MADE), blocked=pasts.count(Past.BLOCKED))
        _tell_pasts(job, pasts, tell)
    open_requests = [request for request, past in zip(job.requests, pasts, strict=True) if past.is_open]
    size = job.setup.batch_size
    together = [open_requests[start : start + size] for start in range(0, len(open_requests), size)]
    for number in turns.take(len(together)):
        before = _costs(pipeline)  # what is done for several stands at the first of them
        if len(together[number]) > 1:
            pipeline.ahead(together[number], on_progress=on_progress)
        for request in together[number]:
            outcome = _make(
                job, request, pipeline, groups, before, tell=tell, on_progress=on_progress, versions=versions
            )
            before = _costs(pipeline)
            tally = tally.with_one(outcome)
    return Tally(**turns.totals(asdict(tally)))


def _pasts(job: Job) -> list[Past]:
    """Only a batch goes on where an earlier run ended: who asks for one video wants it made."""
    if not job.is_batch:
        return [Past.OPEN] * len(job.requests)
    return [resume(request.video_path, job.item_of(request)) for request in job.requests]


def _tell_pasts(job: Job, pasts: list[Past], tell: Tell) -> None:
    for line in past_lines(pasts, job.folder, made=job.request.made):
        tell(line)
    for request, past in zip(job.requests, pasts, strict=True):
        if past is Past.BLOCKED:
            tell(f"{request.video_path}: blocked in an earlier run")


def _make(
    job: Job,
    request: Text2WorldRequest,
    pipeline: AnyPipeline,
    groups: Groups,
    before: Mapping[str, Costs],
    *,
    tell: Tell,
    on_progress: OnProgress,
    versions: Mapping[str, str],
) -> str:
    """What became of the video: the name of its field in Tally. before: the costs when its turn began."""
    path = request.video_path
    try:
        rank_zero(lambda: job.check_unchanged(request), groups.replica)
        video = pipeline(request, on_progress=on_progress)
    except Blocked as blocked:
        outcome = {"outcome": "blocked", "by": blocked.by, "reason": blocked.reason}
        facts = _with_outcome({**job.facts(request), "versions": versions}, outcome)
        only_rank_zero(lambda: write_blocked(path, manifest=facts), groups.replica)
        if groups.replica.rank() == 0:
            tell(f"{path}: {blocked}")
        return "blocked"
    except ItemError as error:
        if not job.is_batch:
            raise
        if groups.replica.rank() == 0:
            tell(f"{path} cannot be made: {error}")
        return "failed"
    only_rank_zero(lambda: _write(job, request, video, pipeline, before, versions), groups.replica)
    if groups.replica.rank() == 0:
        for line in _cost_lines(pipeline, before):
            tell(line)
        tell(f"wrote {path}")
    return "made"


def _write(
    job: Job,
    request: Text2WorldRequest,
    video: Video | None,
    pipeline: AnyPipeline,
    before: Mapping[str, Costs],
    versions: Mapping[str, str],
) -> None:
    assert video is not None
    manifest = {
        **job.facts(request),
        "prompt": video.prompt,
        "stages": {stage.name: _cost_facts(stage, before[stage.name]) for stage in pipeline.stages},
        "versions": versions,
    }
    if job.has_guardrails:
        manifest = _with_outcome(manifest, {"outcome": "faces blurred" if video.is_changed else "passed"})
    path = request.video_path
    with _terminated_like_any_exit():
        write_video(video.frames_THWC, path, fps=video.fps, prompt=video.prompt, manifest=manifest)


@contextmanager
def _terminated_like_any_exit() -> Iterator[None]:
    """SIGTERM (scancel, preemption) unwinds the stack, so that a half-written file is removed."""

    def leave(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_outcome(manifest: dict[str, Any], outcome: Mapping[str, str]) -> dict[str, Any]:
    return {**manifest, "guardrails": {**manifest["guardrails"], **outcome}}


def _costs(pipeline: AnyPipeline) -> dict[str, Costs]:
    return {stage.name: replace(stage.costs) for stage in pipeline.stages}


def _cost_facts(stage: Stage, before: Costs) -> dict[str, Any]:
    """Of one video; the peaks are those since the start."""
    costs = stage.costs
    return {
        "seconds": round(costs.seconds - before.seconds, 3),
        "load_seconds": round(costs.load_seconds - before.load_seconds, 3),
        "peak_bytes": costs.peak_bytes,
        "peak_reserved_bytes": costs.peak_reserved_bytes,
    }


def _cost_lines(pipeline: AnyPipeline, before: Mapping[str, Costs]) -> list[str]:
    lines = []
    for stage in pipeline.stages:
        facts = _cost_facts(stage, before[stage.name])
        peak = f"  peak {facts['peak_bytes'] / 2**30:.1f} GiB" if facts["peak_bytes"] else ""
        loading = f"of which loading {facts['load_seconds']:.1f} s"
        lines.append(f"  {stage.name:<18}{facts['seconds']:8.1f} s  {loading}{peak}")
    return lines
