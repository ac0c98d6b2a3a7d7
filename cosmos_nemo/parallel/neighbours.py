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


def join_on_first(mine_TX: Tensor, group: ProcessGroup) -> Tensor | None:
    """The pieces of all ranks one after the other along the first axis, on the first rank; None elsewhere.

    All have the same other axes; a rank without a piece has one of no length.
    """
    lengths = torch.empty(group.size(), dtype=torch.int64, device=mine_TX.device)
    mine = torch.tensor([len(mine_TX)], dtype=torch.int64, device=mine_TX.device)
    dist.all_gather_into_tensor(lengths, mine, group=group)
    if group.rank() > 0:
        if len(mine_TX):
            dist.send(mine_TX.contiguous(), dist.get_global_rank(group, 0), group=group)
        return None
    whole = mine_TX.new_empty(int(lengths.sum()), *mine_TX.shape[1:])
    parts = whole.split(lengths.tolist())
    parts[0].copy_(mine_TX)
    for rank, part in enumerate(parts[1:], start=1):
        if len(part):
            dist.recv(part, dist.get_global_rank(group, rank), group=group)
    return whole
