"""The watchdog in one process: two of them on one store, and SIGINT as what a lost neighbour causes.

Its clock is the test's, so that a busy machine loses nobody; only its beats take real time.
"""

import time

import pytest
import torch.distributed as dist

from cosmos_nemo.parallel import watchdog as watchdog_module
from cosmos_nemo.parallel.company import Company, Failure
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.parallel.watchdog import Watchdog

BEAT, PATIENCE = 0.02, 10.0
JUST_TOO_LONG = PATIENCE + BEAT
"""For a neighbour; the watchdog's own thread may be silent for a beat more before the process is ended."""


class Clock:
    """Stands for the module `time`; it goes on when `now` is changed."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog_module, "time", clock)
    return clock


def _companies() -> tuple[Company, Company]:
    store = dist.HashStore()
    return Company(Ranks(rank=0, num_ranks=2), store), Company(Ranks(rank=1, num_ranks=2), store)


def _dog(company: Company, *, start: float = 60.0) -> Watchdog:
    return Watchdog(company, num_ranks=2, beat=BEAT, patience=PATIENCE, start=start)


def _wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def _wait_for_beats(company: Company, *ranks: int, count: int = 3) -> None:
    """Until these ranks have beaten `count` times more: all they see was seen in between."""
    before = [_beats(company, rank) for rank in ranks]
    deadline = time.monotonic() + 60
    while any(_beats(company, rank) < old + count for rank, old in zip(ranks, before, strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _beats(company: Company, rank: int) -> int:
    key = f"beat/{rank}"
    return int(company.store.get(key)) if company.store.check([key]) else 0


def test_two_that_beat_leave_each_other_alone(clock: Clock) -> None:
    ours, theirs = _companies()
    with _dog(ours) as one, _dog(theirs) as other:
        for _ in range(5):
            _wait_for_beats(ours, 0, 1)
            clock.now += PATIENCE / 2
        _wait_for_beats(ours, 0, 1)
    assert one.lost is None and other.lost is None


def test_a_neighbour_that_stops_beating_interrupts_the_main_thread(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = _companies()
    with _dog(theirs):
        _wait_for_beats(theirs, 1)
    with pytest.raises(KeyboardInterrupt), _dog(ours) as one:
        _wait_for_beats(ours, 0)
        clock.now += JUST_TOO_LONG
        _wait(60)
    assert one.lost is not None and one.lost.rank == 1 and "has not been heard of" in one.lost.message
    assert "rank 0 stops: rank 1: has not been heard of" in capfd.readouterr().err
    reported = theirs.failure()
    assert reported is not None and "rank 1 has not been heard of" in reported.message


def test_a_neighbour_that_never_starts_is_given_longer_but_not_for_ever(clock: Clock) -> None:
    ours, _ = _companies()
    with pytest.raises(KeyboardInterrupt), _dog(ours, start=3.5 * PATIENCE) as one:
        for _ in range(3):
            _wait_for_beats(ours, 0)
            clock.now += JUST_TOO_LONG
            _wait_for_beats(ours, 0)
            assert one.lost is None
        clock.now += PATIENCE
        _wait(60)
    assert one.lost is not None and "for 35 s" in one.lost.message


def test_a_reported_failure_interrupts_with_its_reason_and_status(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = _companies()
    with pytest.raises(KeyboardInterrupt), _dog(ours) as one:
        assert theirs.fail("disk full", status=2)
        _wait(60)
    assert one.lost == Failure(1, 2, "disk full")
    assert "rank 0 stops: rank 1: disk full" in capfd.readouterr().err


def test_after_the_block_a_failure_interrupts_nobody() -> None:
    ours, theirs = _companies()
    with _dog(ours) as one:
        pass
    theirs.fail("too late", status=1)
    _wait(10 * BEAT)
    assert one.lost is None


def test_one_rank_alone_has_no_thread() -> None:
    store = dist.HashStore()
    with Watchdog(Company(Ranks(), store), num_ranks=1, beat=0.01):
        _wait(0.1)
    assert not store.check(["beat/0"])
