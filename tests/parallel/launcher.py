"""Starts a script on several CPU ranks, the way torchrun does, and collects what they say."""

import functools
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.parallel.fork_server import Forked, ForkServer

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Rank:
    """A running rank. It writes to files, which never fill up and can be read while it runs."""

    process: Forked
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


_PORTS = range(20_000, 30_000)
"""Below those that a system hands out itself, which could take a port again before its ranks open it."""

_RESERVED: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of this machine that no other call gets, in this process or beside it, until it ends."""
    start = os.getpid() * 16 % len(_PORTS)
    for port in (*_PORTS[start:], *_PORTS[:start]):
        if _reserve(port):
            return port
    raise AssertionError(f"every port of {_PORTS} is taken")


def _reserve(port: int) -> bool:
    """Whether the TCP port is free; the UDP port of the same number says to others that it is ours."""
    sign = socket.socket(type=socket.SOCK_DGRAM)
    with socket.socket() as probe:
        try:
            sign.bind(("127.0.0.1", port))
            probe.bind(("127.0.0.1", port))
        except OSError:
            sign.close()
            return False
    _RESERVED.append(sign)
    return True


_SET_BY_IMPORTS = ("TORCHINDUCTOR_CACHE_DIR",)
"""Megatron sets it when it is imported here, so that it says nothing of the person's environment."""


def clean_environment(**variables: str) -> dict[str, str]:
    """This process' environment without a launcher's variables, GPU and text cache, plus `variables`."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_")
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COSMOS_NEMO_CACHE": "",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*launchers, *_SET_BY_IMPORTS))}
    return kept | ours | variables


@functools.cache
def _servers() -> tuple[ForkServer, ForkServer]:
    environment = clean_environment(PYTHONHASHSEED="random")
    return ForkServer(environment), ForkServer(environment)


def start(script: Path, *args: str, environment: dict[str, str], server: int = 0) -> Rank:
    """Processes of two servers differ in what differs between interpreters, such as the order of a set."""
    # Removed when the Rank is: it outlives the process.
    out, err = (tempfile.NamedTemporaryFile(prefix="rank_") for _ in range(2))  # noqa: SIM115
    environment = {**environment, "PYTHONHASHSEED": "random"}
    process = _servers()[server].start(script, *args, environment=environment, out=out.name, err=err.name)
    return Rank(process, out, err)


def start_ranks(num_ranks: int, script: Path, *args: str) -> list[Rank]:
    """Ranks as torchrun starts them, but for its agent."""
    port = str(free_port())
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(
            script,
            *args,
            environment=clean_environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            server=rank % 2,
        )
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
        start(script, *args, environment=clean_environment(SLURM_PROCID=str(rank), **shared), server=rank % 2)
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
