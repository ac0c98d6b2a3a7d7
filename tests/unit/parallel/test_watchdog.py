"""The watchdog in one process: two of them on one store, and SIGINT as what a lost neighbour causes."""

import time

import pytest
import torch.distributed as dist

from cosmos_nemo.parallel.watchdog import FAILED, Watchdog, report


def _dog(store: dist.Store, rank: int, **changes: float) -> Watchdog:
    return Watchdog(store, rank=rank, num_ranks=2, **{"beat": 0.05, "patience": 0.5, "start": 0.5, **changes})


def _wait(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def test_two_that_beat_leave_each_other_alone() -> None:
    store = dist.HashStore()
    with _dog(store, 0) as one, _dog(store, 1) as other:
        _wait(1.5)
    assert one.lost is None and other.lost is None


def test_a_neighbour_that_stops_beating_interrupts_the_main_thread(capfd: pytest.CaptureFixture[str]) -> None:
    store = dist.HashStore()
    with _dog(store, 1):
        _wait(0.2)
    with pytest.raises(KeyboardInterrupt), _dog(store, 0, start=60) as one:
        _wait(5)
    assert one.lost is not None and "rank 1 has not been heard of" in one.lost
    assert "rank 0 stops: rank 1 has not been heard of" in capfd.readouterr().err
    assert b"rank 1 has not been heard of" in store.get(FAILED)


def test_a_neighbour_that_never_starts_is_given_longer() -> None:
    store = dist.HashStore()
    with _dog(store, 0, patience=0.1, start=60) as one:
        _wait(0.6)
    assert one.lost is None


def test_a_reported_failure_interrupts_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    store = dist.HashStore()
    with pytest.raises(KeyboardInterrupt), _dog(store, 0, start=60) as one:
        report(store, rank=1, message="disk full")
        _wait(5)
    assert one.lost == "rank 1: disk full"
    assert "rank 0 stops: rank 1: disk full" in capfd.readouterr().err


def test_after_the_block_a_failure_interrupts_nobody() -> None:
    store = dist.HashStore()
    with _dog(store, 0, start=60) as one:
        pass
    report(store, rank=1, message="too late")
    _wait(0.3)
    assert one.lost is None


def test_one_rank_alone_has_no_thread_and_reports_to_nobody() -> None:
    store = dist.HashStore()
    with Watchdog(store, rank=0, num_ranks=1) as alone:
        alone.report("nothing")
    assert not store.check([FAILED])
