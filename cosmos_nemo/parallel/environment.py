"""Which rank this process is, read from what torchrun or srun put into the environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those started. `address` is None for a process started alone."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    address: str | None = None
    port: int = 0
    store_is_hosted: bool = False
    """The launcher's agent already serves the rendezvous store (torchrun does)."""
    attempt: str = "0"
    """Keeps torchrun's restarts, which share one store, and a job's steps apart."""


def ranks_from(environ: Mapping[str, str]) -> Ranks:
    """torchrun's variables first, then a Slurm step's (srun), else one process alone.

    The number of GPUs plays no role: several nodes, or more GPUs than ranks, are counted right.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return Ranks(
            rank=int(environ["RANK"]),
            num_ranks=int(environ["WORLD_SIZE"]),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            address=environ.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environ.get("MASTER_PORT", "29500")),
            store_is_hosted=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )
    # SLURM_NTASKS also stands in the environment of a batch script, which is one process: only a step counts.
    num_tasks = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks > 1 and "SLURM_PROCID" in environ:
        job, step = environ.get("SLURM_JOB_ID", "0"), environ.get("SLURM_STEP_ID", "0")
        # Steps of one job may run side by side on the same hosts: each has a port and keys of its own.
        port = 20000 + (int(job) * 31 + int(step)) % 10000
        return Ranks(
            rank=int(environ["SLURM_PROCID"]),
            num_ranks=num_tasks,
            local_rank=int(environ.get("SLURM_LOCALID", "0")),
            address=environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1")),
            port=int(environ.get("MASTER_PORT", str(port))),
            attempt=f"{job}.{step}",
        )
    return Ranks()


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: `n1`, `n1,n2`, `gpu[07-09,12]`, `rack[1-2]n[1,3].local`."""
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodelist).partition(",")[0]
