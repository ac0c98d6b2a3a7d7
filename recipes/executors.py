"""Where a recipe runs: `executor=torchrun`, `executor=docker` or `executor=slurm`, with dotted fields.

`executor=slurm executor.account=me executor.nodes=2 executor.ntasks_per_node=8 executor.gpus_per_node=8 ...`;
all fields are nemo_run's own.
"""

from collections.abc import Mapping
from typing import Any

import nemo_run as run

_SBATCH = {"requeue": True}
"""What sbatch is told beside the executor's fields."""


def torchrun() -> run.Config[run.LocalExecutor]:
    """Here, one rank for each GPU (one without a GPU); executor.ntasks_per_node=2 for another number."""
    return run.Config(
        run.LocalExecutor,
        ntasks_per_node=_num_gpus(),
        launcher="torchrun",
        packager=run.Config(run.Packager),
    )


def docker() -> run.Config[run.DockerExecutor]:
    """Here, in the image that `docker build -t cosmos-nemo .` makes, one rank for each GPU."""
    return run.Config(
        run.DockerExecutor,
        container_image="cosmos-nemo",
        num_gpus=-1,
        ntasks_per_node=_num_gpus(),
        ipc_mode="host",
        network="host",
        launcher="torchrun",
        packager=run.Config(run.Packager),
    )


def slurm() -> run.Config[run.SlurmExecutor]:
    """On a Slurm cluster; executor.account is needed. srun starts the ranks, ntasks_per_node on each node.

    A job that is preempted or loses a node is queued again, and goes on with its batch; one that fails is
    too, as often as executor.retries says.
    """
    return run.Config(
        run.SlurmExecutor,
        time="04:00:00",
        additional_parameters=dict(_SBATCH),
        packager=run.Config(run.Packager),
    )


def with_our_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """A person's additional_parameters over those of `slurm`.

    What is None or False is left out, and requeue also beside no_requeue: sbatch takes no value for either.
    """
    names = {name.replace("-", "_") for name in given}
    ours = {name: value for name, value in _SBATCH.items() if f"no_{name}" not in names}
    both = {**ours, **given}
    return {name: value for name, value in both.items() if value is not None and value is not False}


EXECUTORS = {
    "torchrun": (torchrun, run.LocalExecutor),
    "docker": (docker, run.DockerExecutor),
    "slurm": (slurm, run.SlurmExecutor),
}


def _num_gpus() -> int:
    import torch

    return max(torch.cuda.device_count(), 1)
