import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.models.common import attention
from cosmos_nemo.models.common.attention import (
    TorchAttention,
    TorchRMSNorm,
    attend_in_context,
    dot_product_attention,
)
from cosmos_nemo.parallel.context import local_length, split_tokens
from tests.fakes import FakeGroup


def qkv(*, tokens: int, keys: int, heads: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(length, 2, heads, 8, dtype=torch.float64) for length in (tokens, keys, keys)]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(q)
    for b in range(q.shape[1]):
        for n in range(q.shape[2]):
            for s in range(q.shape[0]):
                scores_L = torch.stack([q[s, b, n] @ k[i, b, n] / math.sqrt(8) for i in range(len(k))])
                out[s, b, n] = scores_L.softmax(-1) @ v[:, b, n]
    return out


@pytest.mark.parametrize("keys", [5, 4], ids=["of itself", "of a text"])
def test_attention_is_the_softmax_of_scaled_products_without_mask(keys: int) -> None:
    q, k, v = qkv(tokens=5, keys=keys)
    torch.testing.assert_close(dot_product_attention(q, k, v), explicit(q, k, v))


@pytest.mark.parametrize("group", [None, FakeGroup(1, 0)], ids=["text", "one rank"])
def test_attention_without_other_ranks_asks_nobody(group: Any) -> None:
    q, k, v = qkv(tokens=5, keys=5)
    core = TorchAttention(num_heads=3, head_dim=8, cp=group)
    assert torch.equal(core(q, k, v, 5), dot_product_attention(q, k, v))


@pytest.mark.parametrize(("heads", "form"), [(4, "attend_by_heads"), (3, "attend_by_gathering")])
def test_heads_are_split_where_they_divide_and_keys_gathered_where_they_do_not(
    heads: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[Any, ...]]] = []
    for name in ("attend_by_heads", "attend_by_gathering"):
        monkeypatch.setattr(attention, name, lambda *args, name=name: asked.append((name, args)) or args[1])
    q, k, v = qkv(tokens=5, keys=5, heads=heads)
    group: Any = FakeGroup(2, 1)
    core = TorchAttention(num_heads=heads, head_dim=8, cp=group)
    assert core(q, k, v, 9) is q
    ((name, args),) = asked
    assert name == form
    assert args[0] == core.attend
    assert args[1] is q and args[2] is k and args[3] is v
    assert args[4:] == (group, 9)


def test_one_rank_attends_by_the_function_it_is_given() -> None:
    q, k, v = qkv(tokens=5, keys=5)
    assert attend_in_context(lambda q, k, v: q + k - v, q, k, v, FakeGroup(1, 0), 5).equal(q + k - v)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_tokens", "ranks", "length"), [(9, 3, 3), (10, 3, 4), (1, 3, 1), (4, 3, 2), (7, 1, 7)]
)
def test_tokens_are_split_evenly_with_zeros_at_the_end(num_tokens: int, ranks: int, length: int) -> None:
    tokens = torch.arange(1.0, 2 * num_tokens + 1).reshape(num_tokens, 2, 1)
    groups: list[Any] = [FakeGroup(ranks, rank) for rank in range(ranks)]
    assert {local_length(num_tokens, group) for group in groups} == {length}
    shares = [split_tokens(tokens, group) for group in groups]
    assert {share.shape for share in shares} == {(length, 2, 1)}
    joined = torch.cat(shares)
    assert torch.equal(joined[:num_tokens], tokens)
    assert not joined[num_tokens:].any()


def test_the_norm_of_the_torch_back_end_adds_its_epsilon_under_the_root() -> None:
    norm = TorchRMSNorm(hidden_size=8, eps=0.5, dtype=torch.float64)
    assert norm.weight.dtype == torch.float64
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(norm(x), norm.weight * x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt())
