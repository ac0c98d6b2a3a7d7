"""Starts a script on several CPU ranks, the way torchrun does, and collects what they say."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Rank:
    """A running rank. It writes to files, which never fill up and can be read while it runs."""

    process: "subprocess.Popen[bytes]"
    out: IO[bytes]
    err: IO[bytes]

    def said(self, stream: IO[bytes]) -> str:
        stream.flush()
        return Path(stream.name).read_text(errors="replace")

    def wait_until_it_says(self, text: str, *, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.said(self.out) + self.said(self.err):
            assert self.process.poll() is None, self.said(self.err)
            assert time.monotonic() < deadline, f"{text!r} was not said:\n{self.said(self.err)}"
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**variables: str) -> dict[str, str]:
    """This process' environment without a launcher's variables, GPU and text cache, plus `variables`."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_")
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COSMOS_NEMO_CACHE": "",
    }
    return {k: v for k, v in os.environ.items() if not k.startswith(launchers)} | ours | variables


def start(script: Path, *args: str, environment: dict[str, str]) -> Rank:
    # Removed when the Rank is: it outlives the process.
    out, err = (tempfile.NamedTemporaryFile(prefix="rank_") for _ in range(2))  # noqa: SIM115
    command = [sys.executable, str(script), *args]
    return Rank(subprocess.Popen(command, env=environment, stdout=out, stderr=err), out, err)


def start_ranks(num_ranks: int, script: Path, *args: str) -> list[Rank]:
    """Ranks as torchrun starts them, but for its agent."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(script, *args, environment=clean_environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared))
        for rank in range(num_ranks)
    ]


def start_slurm_tasks(num_ranks: int, script: Path, *args: str) -> list[Rank]:
    """Tasks as srun starts them, one on each of `num_ranks` nodes."""
    shared = {
        "SLURM_STEP_NUM_TASKS": str(num_ranks),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": "1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        start(script, *args, environment=clean_environment(SLURM_PROCID=str(rank), **shared))
        for rank in range(num_ranks)
    ]


def wait_for(ranks: list[Rank], *, timeout: float = 240) -> list[Ended]:
    """What each rank printed and its status; all are killed if one outlasts the timeout."""
    deadline = time.monotonic() + timeout
    try:
        for rank in ranks:
            rank.process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        return [Ended(rank.process.returncode, rank.said(rank.out), rank.said(rank.err)) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.process.poll() is None:
                rank.process.kill()
                rank.process.wait()


def run_ranks(num_ranks: int, script: Path, *args: str, timeout: float = 240) -> list[Ended]:
    """As wait_for(start_ranks(...)), and every rank must succeed."""
    ended = wait_for(start_ranks(num_ranks, script, *args), timeout=timeout)
    for rank, one in enumerate(ended):
        assert one.status == 0, f"rank {rank} ended with {one.status}:\n{one.out}\n{one.err}"
    return ended
