"""The watchdog in one process: two of them on one store, and SIGINT as what a lost neighbour causes."""

import time

import pytest
import torch.distributed as dist

from cosmos_nemo.parallel.company import Company, Failure
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.parallel.watchdog import Watchdog


def _companies() -> tuple[Company, Company]:
    store = dist.HashStore()
    return Company(Ranks(rank=0, num_ranks=2), store), Company(Ranks(rank=1, num_ranks=2), store)


def _dog(company: Company, **changes: float) -> Watchdog:
    return Watchdog(company, num_ranks=2, **{"beat": 0.05, "patience": 0.5, "start": 0.5, **changes})


def _wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def test_two_that_beat_leave_each_other_alone() -> None:
    ours, theirs = _companies()
    with _dog(ours) as one, _dog(theirs) as other:
        _wait(1.5)
    assert one.lost is None and other.lost is None


def test_a_neighbour_that_stops_beating_interrupts_the_main_thread(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = _companies()
    with _dog(theirs):
        _wait(0.2)
    with pytest.raises(KeyboardInterrupt), _dog(ours, start=60) as one:
        _wait(5)
    assert one.lost is not None and one.lost.rank == 1 and "has not been heard of" in one.lost.message
    assert "rank 0 stops: rank 1: has not been heard of" in capfd.readouterr().err
    reported = theirs.failure()
    assert reported is not None and "rank 1 has not been heard of" in reported.message


def test_a_neighbour_that_never_starts_is_given_longer() -> None:
    with _dog(_companies()[0], patience=0.1, start=60) as one:
        _wait(0.6)
    assert one.lost is None


def test_a_reported_failure_interrupts_with_its_reason_and_status(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = _companies()
    with pytest.raises(KeyboardInterrupt), _dog(ours, start=60) as one:
        assert theirs.fail("disk full", status=2)
        _wait(5)
    assert one.lost == Failure(1, 2, "disk full")
    assert "rank 0 stops: rank 1: disk full" in capfd.readouterr().err


def test_after_the_block_a_failure_interrupts_nobody() -> None:
    ours, theirs = _companies()
    with _dog(ours, start=60) as one:
        pass
    theirs.fail("too late", status=1)
    _wait(0.3)
    assert one.lost is None


def test_one_rank_alone_has_no_thread() -> None:
    store = dist.HashStore()
    with Watchdog(Company(Ranks(), store), num_ranks=1, beat=0.01):
        _wait(0.1)
    assert not store.check(["beat/0"])
