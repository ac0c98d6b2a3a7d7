"""Takes a rank down when another one is gone, whatever launched them.

torchrun and `srun --kill-on-bad-exit` do this themselves; plain srun does not, and a rank inside an NCCL
collective would wait for its whole timeout.
"""

import os
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Self

from cosmos_nemo.parallel.company import Company, Failure

_FAILED = 1


class Watchdog:
    """Beats for this rank and watches its neighbour, in a thread with a store connection of its own.

    A failure that a rank reports (Company.fail) is seen within a `beat`. One that is killed stops beating,
    which its neighbour notices after `patience` seconds and reports. Until a first beat it waits for `start`
    seconds: reading packages from a busy file system takes some ranks far longer than others. A second thread
    never touches the store, and ends the process when the first is stuck in it: rank 0's host is frozen.
    """

    def __init__(
        self,
        company: Company,
        *,
        num_ranks: int,
        beat: float = 3.0,
        patience: float = 40.0,
        start: float = 300.0,
    ) -> None:
        self.lost: Failure | None = None
        self._company, self._rank, self._num_ranks = company, company.ranks.rank, num_ranks
        self._beat, self._patience, self._start = beat, patience, start
        self._stopped = threading.Event()
        self._exchanged_at = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._watch, self._guard)
        ]

    def __enter__(self) -> Self:
        self._exchanged_at = time.monotonic()
        if self._num_ranks > 1:
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=2 * self._beat)

    def _watch(self) -> None:
        neighbour = (self._rank + 1) % self._num_ranks
        store, key = self._company.store, f"beat/{neighbour}"
        seen, seen_at, count = b"", time.monotonic(), 0
        try:
            while not self._stopped.wait(self._beat):
                count += 1
                store.set(f"beat/{self._rank}", str(count))
                if (failure := self._company.failure()) is not None:
                    return self._stop(failure)
                if store.check([key]) and (value := store.get(key)) != seen:
                    seen, seen_at = value, time.monotonic()
                self._exchanged_at = time.monotonic()
                limit = self._patience if seen else self._start
                if time.monotonic() - seen_at > limit:
                    message = f"has not been heard of for {limit:.0f} s"
                    self._company.fail(f"rank {neighbour} {message}", status=_FAILED)
                    return self._stop(Failure(neighbour, _FAILED, message))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            self._stop(Failure(0, _FAILED, f"its store is gone ({reason})"))

    def _guard(self) -> None:
        while not self._stopped.wait(self._beat):
            if self.lost is None and time.monotonic() - self._exchanged_at > self._patience + 2 * self._beat:
                sys.stderr.write(f"rank {self._rank} stops: rank 0's store does not answer\n")
                sys.stderr.flush()
                os._exit(_FAILED)

    def _stop(self, failure: Failure) -> None:
        """Interrupts the main thread so that it can clean up; ends the process if that one is stuck."""
        if self._stopped.is_set():
            return
        self.lost = failure
        sys.stderr.write(f"rank {self._rank} stops: {failure}\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGINT)
        if not self._stopped.wait(10.0):
            os._exit(failure.status)
