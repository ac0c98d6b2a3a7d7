"""One thing cut into pieces in order, a piece to a rank: what passes from each rank to the next."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def pieces_of(length: int, group: ProcessGroup, *, least: int) -> list[int]:
    """How much of `length` each rank has: as equal as can be, the first ones more, at least `least`.

    Where there is too little for all, the last ranks have nothing.
    """
    ranks = max(1, min(group.size(), length // least))
    share, rest = divmod(length, ranks)
    return [share + (rank < rest) for rank in range(ranks)] + [0] * (group.size() - ranks)


def hand_on(mine: Tensor, group: ProcessGroup, *, is_first: bool, is_last: bool) -> Tensor | None:
    """What the rank before has handed on, of the same shape; None on the first rank.

    Each rank from the first to the last that takes part calls this as often as the others.
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
    for work in dist.batch_isend_irecv(steps) if steps else ():
        work.wait()
    return arrived


def join_on_first(mine_TX: Tensor, group: ProcessGroup, *, lengths: list[int]) -> Tensor | None:
    """The pieces of the first ranks one after the other along the first axis, on rank 0; None elsewhere.

    lengths: of the pieces of all ranks that have one, each of which calls this. All have the same other axes.
    """
    assert len(mine_TX) == lengths[group.rank()], "a piece of another length than was said"
    if group.rank() > 0:
        dist.send(mine_TX.contiguous(), dist.get_global_rank(group, 0), group=group)
        return None
    whole = mine_TX.new_empty(sum(lengths), *mine_TX.shape[1:])
    parts = whole.split(lengths)
    parts[0].copy_(mine_TX)
    for rank, part in enumerate(parts[1:], start=1):
        dist.recv(part, dist.get_global_rank(group, rank), group=group)
    return whole
