"""All ranks that were started together, around one store: who failed and why, and when each may leave."""

import json
import time
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from cosmos_nemo.parallel.environment import Ranks

_CONNECT_PATIENCE = timedelta(minutes=10)
_LEAVE_PATIENCE = 30.0
_LEAVE_PATIENCE_AFTER_FAILURE = 8.0
_POLL_SECONDS = 0.2
_FAILURE, _NUM_FAILURES, _STATUS, _NUM_GONE = "failure", "num_failures", "status", "num_gone"


@dataclass(frozen=True)
class Failure:
    """The first failure among the ranks."""

    rank: int
    status: int
    message: str

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.message}"


def open_store(ranks: Ranks, *, host: bool = True) -> dist.Store:
    """A connection of its own to the store all started ranks share; an in-process one for a rank alone.

    Rank 0 hosts it unless the launcher does; `host=False` is for its further connections. RuntimeError if
    nobody hosts it within ten minutes, or if rank 0 finds its port taken.
    """
    if ranks.address is None:
        return dist.HashStore()
    store = dist.TCPStore(
        ranks.address,
        ranks.port,
        is_master=host and ranks.rank == 0 and not ranks.store_is_hosted,
        timeout=_CONNECT_PATIENCE,
        wait_for_workers=False,
    )
    return dist.PrefixStore(f"cosmos_nemo/{ranks.attempt}", store)


class Company:
    """What the ranks tell each other outside of collectives. RuntimeError from a call: the store is gone."""

    def __init__(self, ranks: Ranks, store: dist.Store) -> None:
        self.ranks, self.store = ranks, store

    def fail(self, message: str, *, status: int) -> bool:
        """Tells all ranks that this one fails; True for the first to do so, whose message is to be shown."""
        if self.store.add(_NUM_FAILURES, 1) > 1:
            return False
        failure = Failure(self.ranks.rank, status, message)
        self.store.set(_FAILURE, json.dumps(asdict(failure)))
        return True

    def failure(self) -> Failure | None:
        if not self.store.check([_FAILURE]):
            return None
        return Failure(**json.loads(self.store.get(_FAILURE)))

    def wait_for_status(self) -> int:
        """Rank 0's exit status, once it has one; a failure's if rank 0 cannot say."""
        given_up = None
        while not self.store.check([_STATUS]):
            failure = self.failure()
            if failure is not None and given_up is None:
                given_up = time.monotonic() + _LEAVE_PATIENCE
            if failure is not None and given_up is not None and time.monotonic() > given_up:
                return failure.status
            time.sleep(0.3)
        return int(self.store.get(_STATUS))

    def leave(self, status: int) -> None:
        """To be called last. Rank 0, which may host the store, waits until the others have left."""
        if self.ranks.num_ranks == 1:
            return
        try:
            if self.ranks.rank != 0:
                self.store.add(_NUM_GONE, 1)
                return
            self.store.set(_STATUS, str(status))
            patience = _LEAVE_PATIENCE if status == 0 else _LEAVE_PATIENCE_AFTER_FAILURE
            deadline = time.monotonic() + patience
            while not self.ranks.store_is_hosted and time.monotonic() < deadline:
                if self.store.add(_NUM_GONE, 0) >= self.ranks.num_ranks - 1:
                    return
                time.sleep(0.1)
        except RuntimeError:  # the host has left before us: nobody is waiting any more
            return

    def agree_on_device(self, device_type: str) -> str | None:
        """None if rank 0 computes on the same kind of device, else rank 0's kind."""
        if self.ranks.rank == 0:
            self.store.set("device_type", device_type)
        while not self.store.check(["device_type"]):  # rank 0 may look at many files first
            time.sleep(_POLL_SECONDS)
        theirs = self.store.get("device_type").decode()
        return None if theirs == device_type else theirs
