"""Two replicas of one rank each, as threads on one store."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from cosmos_nemo.parallel import turns as turns_module
from cosmos_nemo.parallel.turns import Turns
from cosmos_nemo.plan import Plan
from tests.fakes import FakeGroup

PATIENCE = 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "_POLL_SECONDS", 0.001)


def both(work: Callable[[int, Turns], Any]) -> list[Any]:
    """What `work` returns on each of two replicas."""
    store = dist.HashStore()

    def on(replica: int) -> Any:
        groups: Any = SimpleNamespace(plan=Plan(replicas=2), replica=FakeGroup(1, 0))
        return work(replica, Turns(store, groups))

    with ThreadPoolExecutor(2) as pool:
        return [future.result(timeout=PATIENCE) for future in [pool.submit(on, 0), pool.submit(on, 1)]]


def test_each_item_is_taken_once_and_by_whoever_is_free() -> None:
    other_is_done = threading.Event()

    def work(replica: int, turns: Turns) -> list[int]:
        taken = []
        for number in turns.take(7):
            taken.append(number)
            if replica == 0:  # busy with its first item until the other has done all the rest
                assert other_is_done.wait(PATIENCE)
        other_is_done.set()
        return taken

    first, second = both(work)
    assert len(first) <= 1
    assert sorted(first + second) == list(range(7))


def test_the_totals_are_those_of_both_and_known_to_both() -> None:
    counts = [{"made": 3, "blocked": 0}, {"made": 4, "blocked": 1}]
    assert both(lambda replica, turns: turns.totals(counts[replica])) == [{"made": 7, "blocked": 1}] * 2


def test_nobody_counts_before_the_last_has_finished() -> None:
    late = threading.Event()

    def work(replica: int, turns: Turns) -> tuple[dict[str, int], bool]:
        if replica == 1:
            threading.Timer(0.1, late.set).start()
            assert late.wait(PATIENCE)
        return turns.totals({"made": 1}), late.is_set()

    assert both(work) == [({"made": 2}, True)] * 2


def test_nothing_to_do_is_done_at_once() -> None:
    assert both(lambda _, turns: list(turns.take(0))) == [[], []]
