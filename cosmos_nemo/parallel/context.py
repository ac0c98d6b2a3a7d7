"""Context parallel: the tokens of one video split over ranks, contiguous and padded at the end.

Legend: S all tokens, P ranks, s = ceil(S / P) tokens of one rank, B batch, N heads, K head width.
Padding never changes a result: it is cut off before the core attention, where the sequence is whole again.
All functions have exact gradients (gloo and NCCL) and are the identity, but for no padding, on one rank.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q_SBNK, k_LBNK, v_LBNK -> SBNK."""


def local_length(num_tokens: int, group: ProcessGroup) -> int:
    """Tokens each rank holds, padding included."""
    return -(-num_tokens // group.size())


def split_tokens(tokens_SX: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's share of the first axis, zero-padded to the same length on every rank."""
    length = local_length(tokens_SX.shape[0], group)
    share = tokens_SX[group.rank() * length : (group.rank() + 1) * length]
    missing = length - share.shape[0]
    return share if missing == 0 else F.pad(share, (0, 0) * (tokens_SX.ndim - 1) + (0, missing))


def gather_tokens(tokens_sX: Tensor, group: ProcessGroup, num_tokens: int) -> Tensor:
    """All tokens, without the padding, from every rank's share.

    Gradient: each rank is taken to compute the same loss from the whole, so its own share of it flows back.
    """
    if group.size() == 1:
        return tokens_sX
    return _Gather.apply(tokens_sX, group, False)[:num_tokens]


def attend_by_heads(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, group: ProcessGroup, num_tokens: int
) -> Tensor:
    """Attention over all tokens with the heads split: tokens and heads change places by all-to-all, and back.

    q, k, v: [s, B, N, K] of this rank, N divisible by the group's size. DeepSpeed-Ulysses, arXiv:2309.14509.
    """
    ranks = group.size()
    q, k, v = (_tokens_for_heads(part, group)[:num_tokens] for part in (q, k, v))
    out = attend(q, k, v)
    out = F.pad(out, (0, 0, 0, 0, 0, 0, 0, local_length(num_tokens, group) * ranks - num_tokens))
    out = _AllToAll.apply(rearrange(out, "(p s) b n k -> p s b n k", p=ranks), group)
    return rearrange(out, "p s b n k -> s b (p n) k")


def attend_by_gathering(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, group: ProcessGroup, num_tokens: int
) -> Tensor:
    """Attention of this rank's queries over all keys and values, gathered: for any number of heads."""
    k, v = (_Gather.apply(part, group, True)[:num_tokens] for part in (k, v))
    return attend(q, k, v)


def _tokens_for_heads(part_sBNK: Tensor, group: ProcessGroup) -> Tensor:
    """[s, B, N, K] -> [P s, B, N / P, K]."""
    blocks = rearrange(part_sBNK, "s b (p n) k -> p s b n k", p=group.size())
    return rearrange(_AllToAll.apply(blocks, group), "p s b n k -> (p s) b n k")


class _AllToAll(torch.autograd.Function):
    """Block i of the first axis goes to rank i; its own inverse."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        blocks = blocks.contiguous()
        received = torch.empty_like(blocks)
        dist.all_to_all_single(received, blocks, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        received = torch.empty_like(gradient)
        dist.all_to_all_single(received, gradient, group=ctx.group)
        return received, None


class _Gather(torch.autograd.Function):
    """Concatenates every rank's tensor on the first axis; `summed` says whether ranks' gradients add up."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: ProcessGroup, summed: bool) -> Tensor:
        ctx.group, ctx.summed, ctx.length = group, summed, share.shape[0]
        whole = share.new_empty(group.size() * share.shape[0], *share.shape[1:])
        dist.all_gather_into_tensor(whole, share.contiguous(), group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0]
        if ctx.summed:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient, group=ctx.group)
        start = ctx.group.rank() * ctx.length
        return gradient[start : start + ctx.length], None, None
