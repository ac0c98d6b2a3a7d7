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

    `world` are all ranks, `replica` those that make one video together. Megatron's data-parallel axis
    (collection.dp) holds the replicas and, within each, the guidance branches, whose group is `cfg`.
    """

    plan: Plan
    world: ProcessGroup
    replica: ProcessGroup
    cfg: ProcessGroup
    collection: ProcessGroupCollection

    @property
    def rank(self) -> int:
        return self.world.rank()

    @property
    def replica_index(self) -> int:
        return self.rank // self.plan.ranks_per_replica

    @property
    def cfg_rank(self) -> int:
        """Which guidance branch this rank computes when `plan.cfg` is 2: 0 the prompt, 1 the negative one."""
        return self.cfg.rank()


def start(ranks: Ranks, *, plan: Plan, store: dist.Store, device: torch.device) -> Groups:
    """Starts the first `plan.num_ranks` ranks; the others must not call this.

    Megatron's order puts tensor parallel ranks side by side, then context parallel, then the branches, then
    the replicas.
    """
    assert ranks.rank < plan.num_ranks
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
    if plan.replicas == 1:
        return Groups(plan=plan, world=world, replica=world, cfg=collection.dp, collection=collection)
    size = plan.ranks_per_replica
    replica = _own_group([list(range(first, first + size)) for first in range(0, plan.num_ranks, size)])
    return Groups(plan=plan, world=world, replica=replica, cfg=_branches(plan), collection=collection)


def _branches(plan: Plan) -> ProcessGroup:
    """The ranks that compute the same part of the two branches of one video."""
    half, step = plan.cp * plan.tp, plan.ranks_per_replica
    firsts = [replica + inner for replica in range(0, plan.num_ranks, step) for inner in range(half)]
    return _own_group([[first + branch * half for branch in range(plan.cfg)] for first in firsts])


def _own_group(members: list[list[int]]) -> ProcessGroup:
    """Makes all of these groups, as every rank must, and returns the one this rank is in."""
    own, _ = dist.new_subgroups_by_enumeration(members, timeout=COLLECTIVE_TIMEOUT)
    assert own is not None
    return own


def stop() -> None:
    """Ends Megatron's state and torch.distributed, so that torchrun's exit barrier does not wait."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
