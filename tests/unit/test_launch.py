import time

from cosmos_nemo import launch
from cosmos_nemo.parallel.company import Company, Failure, open_store
from cosmos_nemo.parallel.environment import Ranks
from tests.parallel import launcher


def _pair() -> tuple[Company, Company]:
    """Two ranks in one process, on a store as srun's tasks have it."""
    port = launcher.free_port()
    ranks = [Ranks(rank=rank, num_ranks=2, address="127.0.0.1", port=port) for rank in range(2)]
    return Company(ranks[0], open_store(ranks[0])), Company(ranks[1], open_store(ranks[1]))


def test_another_ranks_failure_interrupts_the_work_and_its_status_becomes_this_ranks() -> None:
    ours, theirs = _pair()

    def work() -> None:
        theirs.fail("no such file", status=2)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.05)

    started = time.monotonic()
    assert launch._guarded(work, ours, 2) == 2
    assert time.monotonic() - started < 20


def test_a_failure_of_our_own_is_reported_with_its_status() -> None:
    ours, theirs = _pair()

    def work() -> None:
        raise OSError("disk full")

    assert launch._guarded(work, ours, 2) == 1
    assert theirs.failure() == Failure(0, 1, "OSError: disk full")
