"""Starts torch.distributed and Megatron's parallel state, and hands out the groups. Nothing else does.

One rank too has groups (a HashStore of world 1), so that no module asks whether it runs alone.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed import ProcessGroup

from cosmos_nemo.parallel.company import open_store
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.plan import Plan

COLLECTIVE_TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of one process.

    `cfg` is Megatron's data-parallel axis: it holds the guidance branches, or the replicas of a training run.
    """

    plan: Plan
    world: ProcessGroup
    cfg: ProcessGroup
    collection: ProcessGroupCollection

    @property
    def rank(self) -> int:
        return self.world.rank()

    @property
    def cfg_rank(self) -> int:
        """Which guidance branch this rank computes when `plan.cfg` is 2: 0 the prompt, 1 the negative one."""
        return self.cfg.rank()


def start(ranks: Ranks, *, plan: Plan, store: dist.Store, device: torch.device) -> Groups:
    """Starts the first `plan.num_ranks` ranks; the others must not call this.

    Megatron's order puts tensor parallel ranks side by side, then context parallel, then the branches.
    """
    assert ranks.rank < plan.num_ranks
    assert 1 in (plan.cfg, plan.replicas), "one axis holds either"
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("ranks", store),
        rank=ranks.rank,
        world_size=plan.num_ranks,
        timeout=COLLECTIVE_TIMEOUT,
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=plan.tp,
        context_parallel_size=plan.cp,
        distributed_timeout_minutes=int(COLLECTIVE_TIMEOUT.total_seconds()) // 60,
        create_gloo_process_groups=False,
    )
    return _groups(plan)


def start_alone(device: torch.device) -> Groups:
    """The groups of this process alone, started by the first call: for tools, which run on one rank."""
    if dist.is_initialized():
        assert dist.get_world_size() == 1
        return _groups(Plan())
    ranks = Ranks()
    return start(ranks, plan=Plan(), store=open_store(ranks), device=device)


def _groups(plan: Plan) -> Groups:
    world = dist.group.WORLD
    assert world is not None
    collection = ProcessGroupCollection.use_mpu_process_groups(["tp", "cp", "dp", "dp_cp", "pp", "mp"])
    return Groups(plan=plan, world=world, cfg=collection.dp, collection=collection)


def stop() -> None:
    """Ends Megatron's state and torch.distributed, so that torchrun's exit barrier does not wait."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
