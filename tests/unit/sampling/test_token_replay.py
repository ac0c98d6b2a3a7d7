"""What can be told without a GPU: when a step is captured and when it is launched."""

from typing import Any

import pytest
import torch

from cosmos_nemo.sampling.token_replay import CallByCall, Replay


class Graph:
    def __init__(self, journal: list[str], bucket: int) -> None:
        self.journal, self.bucket = journal, bucket

    def replay(self) -> None:
        self.journal.append(f"replay {self.bucket}")

    def reset(self) -> None:
        self.journal.append(f"free {self.bucket}")


@pytest.fixture
def journal() -> list[str]:
    return []


@pytest.fixture
def replay(journal: list[str], monkeypatch: pytest.MonkeyPatch) -> Replay:
    def capture(self: Any, bucket: int) -> Graph:
        journal.append(f"capture {bucket}")
        return Graph(journal, bucket)

    monkeypatch.setattr(Replay, "_captured", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: journal.append("wait"))
    return Replay(lambda bucket: journal.append(f"step {bucket}"), torch.device("cuda"))


def test_the_first_step_of_a_bucket_runs_and_the_second_is_captured(
    replay: Replay, journal: list[str]
) -> None:
    for bucket in (16, 16, 16, 32, 32):
        replay(bucket)
    replay.close()
    of_first = ["step 16", "capture 16", "replay 16", "replay 16", "wait", "free 16"]
    assert journal == [*of_first, "step 32", "capture 32", "replay 32", "wait", "free 32"]


def test_a_bucket_of_one_step_is_not_captured(replay: Replay, journal: list[str]) -> None:
    for bucket in (16, 32, 48):
        replay(bucket)
    replay.close()
    assert journal == ["step 16", "step 32", "step 48"]


def test_a_step_that_fails_is_not_taken_for_a_warm_up(journal: list[str], replay: Replay) -> None:
    failures = [RuntimeError("no memory")]

    def step(bucket: int) -> None:
        journal.append(f"step {bucket}")
        if failures:
            raise failures.pop()

    replay._step = step
    with pytest.raises(RuntimeError, match="no memory"):
        replay(16)
    replay(16)
    assert journal == ["step 16", "step 16"]


def test_call_by_call_runs_every_step(journal: list[str]) -> None:
    run = CallByCall(lambda bucket: journal.append(f"step {bucket}"))
    run(16)
    run(16)
    run.close()
    assert journal == ["step 16", "step 16"]
