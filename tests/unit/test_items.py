"""Videos of a job on one rank: the real writer and records, with recorded stages in place of models."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch.distributed as dist

from cosmos_nemo import items
from cosmos_nemo.catalog import find_card
from cosmos_nemo.items import Tally, make_items
from cosmos_nemo.job.files import Files
from cosmos_nemo.job.job import Job
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.parallel.turns import Turns
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import Setup, Text2WorldRequest
from cosmos_nemo.stages.item_error import ItemError
from tests.fakes import CPU, RecordedUpsampler
from tests.unit.pipelines.test_text2world import Made

CARD = find_card("Cosmos-Predict1-7B-Text2World")


def job_of(
    folder: Path, *prompts: str, is_batch: bool = True, guardrails: bool = True, fingerprint: str = "1"
) -> Job:
    requests = tuple(
        Text2WorldRequest(prompt=prompt, negative_prompt="bad", fps=24, video_path=folder / f"{i}.npy")
        for i, prompt in enumerate(prompts)
    )
    return Job(
        card=CARD,
        setup=Setup(model=CARD.name, guardrails=guardrails),
        requests=requests,
        is_batch=is_batch,
        needs=("weights",),
        files=Files(weights=folder),
        plan=Plan(),
        device=CPU,
        backend=torch_backend(),
        text_cache=None,
        identities={"weights": {"path": "model.pt", "fingerprint": fingerprint}},
    )


class Run:
    """make_items with new recorded stages each time; what it told and which prompts were encoded."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.encoded: list[str] = []

    def __call__(self, job: Job, **options: Any) -> Tally:
        made, self.told = Made(**options), []
        try:
            groups = start_alone(CPU)
            return make_items(
                job,
                made.pipeline,
                groups,
                turns=Turns(dist.HashStore(), groups),
                tell=self.told.append,
                on_progress=lambda name: None,
                versions={"cosmos_nemo": "x"},
            )
        finally:
            self.encoded = [prompts[0] for prompts in made.text_encoder.prompts]


@pytest.fixture
def run() -> Run:
    return Run()


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())  # type: ignore[no-any-return]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FILES = ["0.json", "0.npy", "0.txt"]


def test_a_video_is_written_with_its_prompt_and_a_manifest_of_what_made_it(run: Run, tmp_path: Path) -> None:
    assert run(job_of(tmp_path, "a cat")) == Tally(made=1)
    assert names_in(tmp_path) == FILES
    assert (numpy.load(tmp_path / "0.npy") == 7).all()
    assert (tmp_path / "0.txt").read_text() == "a cat, seen at length"
    manifest = record(tmp_path, "0.json")
    assert manifest["prompt"] == "a cat, seen at length" and manifest["request"]["prompt"] == "a cat"
    assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}
    assert manifest["versions"] == {"cosmos_nemo": "x"}
    assert manifest["files"]["weights"]["fingerprint"] == "1"
    assert manifest["stages"]["denoise"].keys() == {
        *("seconds", "load_seconds", "peak_bytes", "peak_reserved_bytes")
    }
    assert run.told[-1] == f"wrote {tmp_path / '0.npy'}"
    assert [line.split()[0] for line in run.told[:-1]] == list(manifest["stages"])


def test_blurred_faces_are_an_outcome_of_their_own(run: Run, tmp_path: Path) -> None:
    assert run(job_of(tmp_path, "a cat"), video_guard={"finds": "a face"}) == Tally(made=1)
    assert record(tmp_path, "0.json")["guardrails"]["outcome"] == "faces blurred"
    assert (numpy.load(tmp_path / "0.npy") == 9).all()


def test_without_guardrails_no_outcome_is_claimed(run: Run, tmp_path: Path) -> None:
    run(job_of(tmp_path, "a cat", guardrails=False), off=("text_guard", "video_guard"))
    assert record(tmp_path, "0.json")["guardrails"] == {"state": "disabled by --disable_guardrail"}


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"text_guard": {"blocks": "dog"}}, "text guard"),
        ({"video_guard": {"finds": "harm"}}, "video content"),
    ],
)
def test_a_blocked_video_leaves_a_record_and_no_video(
    run: Run, tmp_path: Path, options: dict[str, Any], by: str
) -> None:
    assert run(job_of(tmp_path, "a dog"), **options) == Tally(blocked=1)
    assert names_in(tmp_path) == ["0.blocked.json"]
    outcome = record(tmp_path, "0.blocked.json")["guardrails"]
    assert outcome["outcome"] == "blocked" and outcome["by"].startswith(by) and outcome["reason"]
    assert run.told[0].startswith(f"{tmp_path / '0.npy'}: blocked by the {by}")


def test_a_batch_goes_on_after_a_blocked_video_and_passes_over_what_is_done(run: Run, tmp_path: Path) -> None:
    job = job_of(tmp_path, "a cat", "a dog", "a fox")
    guard = {"text_guard": {"blocks": "dog"}}
    assert run(job, **guard) == Tally(made=2, blocked=1)
    assert run.encoded == ["a cat, seen at length", "a fox, seen at length"]
    assert run(job, **guard) == Tally(found=2, blocked=1)
    assert run.encoded == []
    assert run.told == ["2 of 3 videos are there already", f"{tmp_path / '1.npy'}: blocked in an earlier run"]


def test_a_video_asked_for_alone_is_made_again(run: Run, tmp_path: Path) -> None:
    job = job_of(tmp_path, "a cat", is_batch=False)
    assert run(job) == run(job) == Tally(made=1)


@pytest.mark.parametrize("damage", ["0.npy", "0.json"])
def test_a_video_whose_files_were_damaged_is_made_again(run: Run, tmp_path: Path, damage: str) -> None:
    job = job_of(tmp_path, "a cat", "a fox")
    run(job)
    (tmp_path / damage).write_bytes(b"x")
    assert run(job) == Tally(made=1, found=1)
    assert run.encoded == ["a cat, seen at length"]


def test_other_weights_make_the_batch_anew(run: Run, tmp_path: Path) -> None:
    run(job_of(tmp_path, "a cat"))
    assert run(job_of(tmp_path, "a cat", fingerprint="2")) == Tally(made=1)


def test_the_record_of_a_block_lies_beside_an_older_video_until_a_new_one_is_made(
    run: Run, tmp_path: Path
) -> None:
    job = job_of(tmp_path, "a dog", is_batch=False)
    run(job)
    run(job, text_guard={"blocks": "dog"})
    assert names_in(tmp_path) == ["0.blocked.json", *FILES]
    run(job)
    assert names_in(tmp_path) == FILES


def test_an_error_in_a_model_ends_the_run_and_keeps_what_is_written(run: Run, tmp_path: Path) -> None:
    run(replace(job_of(tmp_path, "a cat", "a dog"), requests=job_of(tmp_path, "a cat").requests))
    with pytest.raises(RuntimeError, match="denoise fails"):
        run(job_of(tmp_path, "a cat", "a dog"), fails="denoise")
    assert names_in(tmp_path) == FILES


def test_sigterm_while_a_video_is_written_ends_the_run_and_the_old_handler_comes_back(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(items, "write_video", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(job_of(tmp_path, "a cat"))
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def speechless_on_dogs(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = RecordedUpsampler.__call__

    def upsample(stage: RecordedUpsampler, prompt: str) -> str:
        if "dog" in prompt:
            raise ItemError("no words for this. Write it otherwise.")
        return answer(stage, prompt)

    monkeypatch.setattr(RecordedUpsampler, "__call__", upsample)


def test_a_video_that_cannot_be_made_does_not_end_its_batch_and_is_tried_again(
    run: Run, tmp_path: Path, speechless_on_dogs: None
) -> None:
    job = job_of(tmp_path, "a dog", "a fox")
    assert run(job) == Tally(made=1, failed=1)
    assert run.told[0] == f"{tmp_path / '0.npy'} cannot be made: no words for this. Write it otherwise."
    assert names_in(tmp_path) == ["1.json", "1.npy", "1.txt"]
    assert run(job) == Tally(found=1, failed=1)


def test_a_video_asked_for_alone_fails_with_its_reason(
    run: Run, tmp_path: Path, speechless_on_dogs: None
) -> None:
    with pytest.raises(ItemError, match="no words"):
        run(job_of(tmp_path, "a dog", is_batch=False))
