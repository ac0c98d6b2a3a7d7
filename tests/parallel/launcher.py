"""Starts a script on several CPU ranks, the way torchrun does, and collects what they say."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(num_ranks: int, script: Path, *args: str, **variables: str) -> list[subprocess.Popen[str]]:
    """One process per rank, all started at once; variables are added to each one's environment."""
    port = str(free_port())
    shared = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "CUDA_VISIBLE_DEVICES": "",
        "COSMOS_NEMO_CACHE": "",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(script), *args],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]


def wait_for(processes: list[subprocess.Popen[str]], *, timeout: float = 120) -> list[Ended]:
    """What each rank printed and its status; all are killed if one outlasts the timeout."""
    deadline = time.monotonic() + timeout
    try:
        ended = []
        for process in processes:
            out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            ended.append(Ended(process.returncode, out, err))
        return ended
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def run_ranks(num_ranks: int, script: Path, *args: str, timeout: float = 120) -> list[Ended]:
    """As wait_for(start_ranks(...)), and every rank must succeed."""
    ended = wait_for(start_ranks(num_ranks, script, *args), timeout=timeout)
    for rank, one in enumerate(ended):
        assert one.status == 0, f"rank {rank} ended with {one.status}:\n{one.out}\n{one.err}"
    return ended
