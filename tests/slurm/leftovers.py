"""Ends a cluster's processes, also when the tests that started it are killed.

`python -m tests.slurm.leftovers CONF` reads its standard input to the end, which comes when whoever holds the
other end closes it or dies; then it ends every process that has SLURM_CONF=CONF in its environment, and
removes CONF's folder. Daemons, steps and ranks inherit the variable, wherever they fork to.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

_PATIENCE = 3.0
_ENDED = ("Z", "X")
"""States of a process that has ended, and waits for its parent at most."""


def environments(conf: Path) -> dict[int, dict[str, str]]:
    """The processes of the cluster, this one left out: their environments by their ids."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = dict(
                entry.partition("=")[::2]
                for entry in (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            )
            if variables.get("SLURM_CONF") == str(conf) and not _has_ended(folder):
                found[int(folder.name)] = variables
    found.pop(os.getpid(), None)
    return found


def with_variables(conf: Path, wanted: Mapping[str, str]) -> list[int]:
    """The ids of the cluster's processes that have these variables, lowest first."""
    return sorted(pid for pid, found in environments(conf).items() if wanted.items() <= found.items())


def end_all(conf: Path) -> None:
    """SIGTERM, and SIGKILL for what is there three seconds later. What is forked meanwhile is ended too."""
    deadline = time.monotonic() + _PATIENCE
    asked = set[int]()
    while running := environments(conf).keys():
        is_late = time.monotonic() > deadline
        for pid in running if is_late else running - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if is_late else signal.SIGTERM)
        asked |= running
        time.sleep(0.1)


def _has_ended(folder: Path) -> bool:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0] in _ENDED


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_all(Path(sys.argv[1]))
    shutil.rmtree(Path(sys.argv[1]).parent, ignore_errors=True)
