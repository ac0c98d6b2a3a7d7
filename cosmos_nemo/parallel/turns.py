"""Items that the replicas take one by one, and what became of them: through the store, not by collectives.

A collective waits for an hour at most, but a replica may have to wait for another's videos for longer.
"""

import time
from collections.abc import Iterator, Mapping

import torch.distributed as dist

from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.parallel.rank_zero import rank_zero

_TAKEN, _FINISHED, _COUNT = "turns/taken", "turns/finished", "turns/count"
_POLL_SECONDS = 0.2


class Turns:
    """One list of items for all replicas of one run. Every rank of a replica makes the same calls."""

    def __init__(self, store: dist.Store, groups: Groups) -> None:
        self._store, self._groups = store, groups

    def take(self, num_items: int) -> Iterator[int]:
        """Numbers below `num_items`, each to one replica, to whichever asks first."""
        while (number := rank_zero(lambda: self._store.add(_TAKEN, 1) - 1, self._groups.replica)) < num_items:
            yield number

    def totals(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The sums of the counts of all replicas, the first rank's of each, when all have called this."""
        if self._groups.replica.rank() == 0:
            for name, count in counts.items():
                self._store.add(f"{_COUNT}/{name}", count)
            self._store.add(_FINISHED, 1)
        while self._store.add(_FINISHED, 0) < self._groups.plan.replicas:
            time.sleep(_POLL_SECONDS)  # the watchdog ends this if a rank is lost
        return {name: self._store.add(f"{_COUNT}/{name}", 0) for name in counts}
