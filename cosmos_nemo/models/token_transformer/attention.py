"""The core attention of a transformer with fewer key heads than query heads, for a prompt and for one token.

Legend: S query tokens, L keys, B batch, N query heads, M key heads, G = N / M queries of one key head,
K head width. Query head j attends to key head j // G.
"""

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

_PARTS = 16
"""Into how many parts attend_with_one divides the keys, so that a batch of one occupies a whole GPU."""


def attend_causally(q_SBNK: Tensor, k_SBMK: Tensor, v_SBMK: Tensor) -> Tensor:
    """Each token to itself and those before it, [S, B, N, K]; no scores are kept, but by float32 on a GPU."""
    return _attend(q_SBNK, k_SBMK, v_SBMK, is_causal=True)


def attend_to_all(q_SBNK: Tensor, k_LBMK: Tensor, v_LBMK: Tensor) -> Tensor:
    """Every token to every key, [S, B, N, K]."""
    if len(q_SBNK) == 1:
        return attend_with_one(q_SBNK, k_LBMK, v_LBMK)
    return _attend(q_SBNK, k_LBMK, v_LBMK, is_causal=False)


def attend_with_one(
    q_1BNK: Tensor, k_LBMK: Tensor, v_LBMK: Tensor, *, bias_L: Tensor | None = None
) -> Tensor:
    """The attention of one token, [1, B, N, K], that reads each key and value once; softmax in float32.

    bias_L: float32, added to the scores: 0 for a key that is attended to, of which there must be one, and
    -inf for the others, whose keys and values must be finite all the same. Keys and values must be
    contiguous. No value decides what is launched, so that it can be recorded in a CUDA graph.

    One product of B M small matrices would leave most of a GPU idle. So the keys are dealt out over P parts,
    key i to part i mod P: then parts, samples and heads are one axis of the cache as it lies in memory, and a
    batched product takes it without a copy. The parts' sums are added in float32 (as FlashDecoding does).
    """
    length, batch, heads, width = k_LBMK.shape
    parts = math.gcd(length, _PARTS)
    grouped = rearrange(q_1BNK, "1 b (m g) k -> b m g k", m=heads)
    q = grouped.expand(parts, *grouped.shape).flatten(0, 2)
    k, v = (x.view(length // parts, parts * batch * heads, width) for x in (k_LBMK, v_LBMK))
    scores = rearrange(_product(q, k.permute(1, 2, 0)), "(p n) g l -> n g p l", p=parts)
    # Scale, bias and the order that softmax needs in one kernel: each layer of each token launches all these.
    scaled = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    if bias_L is None:
        torch.mul(scores, width**-0.5, out=scaled)
    else:
        torch.add(rearrange(bias_L, "(l p) -> p l", p=parts), scores, alpha=width**-0.5, out=scaled)
    weights = scaled.flatten(2).softmax(dim=-1).view_as(scaled).permute(2, 0, 1, 3)
    weights = weights.to(v.dtype, memory_format=torch.contiguous_format).flatten(0, 1)
    sums = rearrange(_product(weights, v.transpose(0, 1)), "(p n) g k -> p n g k", p=parts)
    return rearrange(sums.sum(0), "(b m) g k -> 1 b (m g) k", b=batch).to(q_1BNK.dtype)


def _attend(q_SBNK: Tensor, k_LBMK: Tensor, v_LBMK: Tensor, *, is_causal: bool) -> Tensor:
    q, k, v = (rearrange(part, "s b n k -> b n s k") for part in (q_SBNK, k_LBMK, v_LBMK))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)
    return rearrange(out, "b n s k -> s b n k")


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Batched matrix product, in float32 whatever the inputs are."""
    if one.dtype == torch.float32:
        return torch.bmm(one, other)
    if one.is_cuda:
        return torch.bmm(one, other, out_dtype=torch.float32)
    return torch.bmm(one.float(), other.float())
