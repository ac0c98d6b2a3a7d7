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

import torch.distributed as dist

FAILED = "failed"
BEAT = 3.0
"""Seconds between two looks at the store."""


def report(store: dist.Store, *, rank: int, message: str, beat: float = BEAT) -> None:
    """Tells the watchdogs of the other ranks that this rank fails, and why.

    Rank 0 may host the store, so it stays until the others can have looked.
    """
    store.set(FAILED, f"rank {rank}: {message}")
    if rank == 0:
        time.sleep(2.5 * beat)


class Watchdog:
    """Beats for this rank and watches its neighbour, in a thread with a store connection of its own.

    A rank that fails by an exception says so at once (`report`); one that is killed stops beating, which
    its neighbour notices after `patience` seconds and passes on. Until a first beat it waits for `start`
    seconds: reading packages from a busy file system takes some ranks far longer than others.
    """

    def __init__(
        self,
        store: dist.Store,
        *,
        rank: int,
        num_ranks: int,
        beat: float = BEAT,
        patience: float = 40.0,
        start: float = 600.0,
    ) -> None:
        self.lost: str | None = None
        self._store, self._rank, self._num_ranks = store, rank, num_ranks
        self._beat, self._patience, self._start = beat, patience, start
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._num_ranks > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * self._beat)

    def report(self, message: str) -> None:
        """Tells the other ranks that this one fails, and why; nothing if it only follows another."""
        if self._num_ranks > 1 and self.lost is None:
            report(self._store, rank=self._rank, message=message, beat=self._beat)

    def _watch(self) -> None:
        neighbour = f"beat/{(self._rank + 1) % self._num_ranks}"
        seen, seen_at, count = b"", time.monotonic(), 0
        while not self._stopped.wait(self._beat):
            count += 1
            try:
                self._store.set(f"beat/{self._rank}", str(count))
                if self._store.check([FAILED]):
                    return self._stop(self._store.get(FAILED).decode())
                if self._store.check([neighbour]) and (value := self._store.get(neighbour)) != seen:
                    seen, seen_at = value, time.monotonic()
            except RuntimeError as error:
                return self._stop(f"the store of rank 0 is gone ({str(error).splitlines()[0]})")
            limit = self._patience if seen else self._start
            if time.monotonic() - seen_at > limit:
                message = f"rank {neighbour.removeprefix('beat/')} has not been heard of for {limit:.0f} s"
                self._store.set(FAILED, message)
                return self._stop(message)

    def _stop(self, message: str) -> None:
        """Interrupts the main thread so that it can clean up; ends the process if that one is stuck."""
        if self._stopped.is_set():
            return
        self.lost = message
        sys.stderr.write(f"rank {self._rank} stops: {message}\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGINT)
        if not self._stopped.wait(10.0):
            os._exit(1)
