import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from cosmos_nemo.parallel import company as company_module
from cosmos_nemo.parallel.company import Company, Failure
from cosmos_nemo.parallel.environment import Ranks


def _companies(num_ranks: int, **facts: bool) -> list[Company]:
    store = dist.HashStore()
    return [Company(Ranks(rank=rank, num_ranks=num_ranks, **facts), store) for rank in range(num_ranks)]


def test_only_the_first_failure_counts_and_is_shown() -> None:
    first, second = _companies(2)
    assert first.failure() is None
    assert second.fail("no file", status=2)
    assert not first.fail("lost the other", status=1)
    assert first.failure() == second.failure() == Failure(1, 2, "no file")


def test_an_idle_rank_gets_rank_zeros_status() -> None:
    busy, idle = _companies(2)
    busy.store.set("status", "3")
    assert idle.wait_for_status() == 3


def test_an_idle_rank_gets_rank_zeros_status_even_after_a_failure() -> None:
    busy, idle = _companies(2)
    busy.fail("no", status=2)
    threading.Timer(0.5, lambda: busy.store.set("status", "2")).start()
    assert idle.wait_for_status() == 2


def test_rank_zero_leaves_last() -> None:
    first, *others = _companies(3)
    left = []

    def leave(company: Company) -> None:
        left.append(company.ranks.rank)
        company.leave(0)

    for delay, other in enumerate(others, start=1):
        threading.Timer(0.2 * delay, leave, [other]).start()
    first.leave(0)
    assert sorted(left) == [1, 2]


def test_rank_zero_waits_for_nobody_where_the_launcher_hosts_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, _ = _companies(2, store_is_hosted=True)

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s")

    monkeypatch.setattr(company_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    first.leave(0)
    with pytest.raises(AssertionError, match="waits"):
        _companies(2)[0].leave(0)


def test_ranks_compare_their_devices() -> None:
    first, second = _companies(2)
    assert first.agree_on_device("cuda") is None
    assert second.agree_on_device("cuda") is None
    assert second.agree_on_device("cpu") == "cuda"


def test_a_rank_waits_for_the_device_of_rank_0_however_long_that_looks_at_files() -> None:
    first, second = _companies(2)
    first.store.set_timeout(timedelta(seconds=0.2))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(second.agree_on_device, "cpu")
        time.sleep(0.6)
        assert not answer.done()
        first.agree_on_device("cpu")
        assert answer.result(timeout=20) is None
