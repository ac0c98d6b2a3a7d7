"""One thing cut into pieces in order, a piece to a rank: what passes from each rank to the next."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def hand_on(mine: Tensor, group: ProcessGroup, *, is_first: bool, is_last: bool) -> Tensor | None:
    """What the rank before has handed on, of the same shape; None on the first rank.

    Each rank from the first to the last that takes part calls this as often as the others. NCCL wants an
    operation of all ranks of the group before the first of some, such as rank_zero.on_all.
    """
    rank = group.rank()
    arrived = None if is_first else torch.empty_like(mine)
    steps = []
    if not is_last:
        following = dist.get_global_rank(group, rank + 1)
        steps.append(dist.P2POp(dist.isend, mine.contiguous(), following, group))
    if arrived is not None:
        before = dist.get_global_rank(group, rank - 1)
        steps.append(dist.P2POp(dist.irecv, arrived, before, group))
    _all_at_once(steps)
    return arrived


def join_on_first(mine_TX: Tensor, group: ProcessGroup, *, lengths: list[int]) -> Tensor | None:
    """The pieces of the first ranks one after the other along the first axis, on rank 0; None elsewhere.

    lengths: of the pieces of all ranks that have one, each of which calls this. All have the same other axes.
    """
    assert len(mine_TX) == lengths[group.rank()], "a piece of another length than was said"
    if group.rank() > 0:
        _all_at_once([dist.P2POp(dist.isend, mine_TX.contiguous(), dist.get_global_rank(group, 0), group)])
        return None
    whole = mine_TX.new_empty(sum(lengths), *mine_TX.shape[1:])
    first, *others = whole.split(lengths)
    first.copy_(mine_TX)
    _all_at_once(
        [
            dist.P2POp(dist.irecv, part, dist.get_global_rank(group, rank), group)
            for rank, part in enumerate(others, start=1)
        ]
    )
    return whole


def _all_at_once(steps: list[dist.P2POp]) -> None:
    for work in dist.batch_isend_irecv(steps) if steps else ():
        work.wait()
