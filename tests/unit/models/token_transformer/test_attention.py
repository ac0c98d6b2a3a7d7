import pytest
import torch
from torch import Tensor

from cosmos_nemo.models.token_transformer.attention import attend_causally, attend_to_all, attend_with_one

BATCH, HEADS, KV_HEADS, WIDTH = 3, 8, 2, 16


def drawn(length: int, heads: int, *, seed: int) -> Tensor:
    return torch.randn(length, BATCH, heads, WIDTH, generator=torch.Generator().manual_seed(seed))


def bias_of(visible_L: Tensor) -> Tensor:
    return torch.zeros(len(visible_L)).masked_fill(~visible_L, -torch.inf)


def by_hand(q: Tensor, k: Tensor, v: Tensor, visible_SL: Tensor) -> Tensor:
    """Every query head with its key head spelled out, in float64."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for b in range(BATCH):
        for n in range(HEADS):
            keys, values = (x[:, b, n // (HEADS // KV_HEADS)].double() for x in (k, v))
            scores = q[:, b, n].double() @ keys.T / WIDTH**0.5
            out[:, b, n] = scores.masked_fill(~visible_SL, -torch.inf).softmax(-1) @ values
    return out


@pytest.mark.parametrize("length", [1, 2, 16, 37, 48, 1024])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_one_token_attends_to_the_visible_keys_of_its_heads_group(length: int, share: float) -> None:
    q, k, v = drawn(1, HEADS, seed=0), drawn(length, KV_HEADS, seed=1), drawn(length, KV_HEADS, seed=2)
    visible = torch.arange(length) <= share * (length - 1)
    found = attend_with_one(q, k, v, bias_L=bias_of(visible))
    torch.testing.assert_close(found.double(), by_hand(q, k, v, visible[None]), rtol=0, atol=2e-6)


def test_without_a_mask_one_token_attends_to_all() -> None:
    q, k, v = drawn(1, HEADS, seed=0), drawn(48, KV_HEADS, seed=1), drawn(48, KV_HEADS, seed=2)
    everything = torch.ones(48, dtype=torch.bool)
    assert torch.equal(attend_with_one(q, k, v), attend_with_one(q, k, v, bias_L=bias_of(everything)))
    assert torch.equal(attend_to_all(q, k, v), attend_with_one(q, k, v))


@pytest.mark.parametrize("length", [1, 6])
def test_tokens_attend_to_all_keys_of_a_text(length: int) -> None:
    q, k, v = drawn(length, HEADS, seed=0), drawn(5, KV_HEADS, seed=1), drawn(5, KV_HEADS, seed=2)
    everything = torch.ones(length, 5, dtype=torch.bool)
    expected = by_hand(q, k, v, everything)
    torch.testing.assert_close(attend_to_all(q, k, v).double(), expected, rtol=0, atol=2e-6)


def test_a_prompt_attends_to_itself_causally() -> None:
    q, k, v = drawn(9, HEADS, seed=0), drawn(9, KV_HEADS, seed=1), drawn(9, KV_HEADS, seed=2)
    expected = by_hand(q, k, v, torch.ones(9, 9, dtype=torch.bool).tril())
    torch.testing.assert_close(attend_causally(q, k, v).double(), expected, rtol=0, atol=2e-6)


def test_scores_too_large_for_an_exponential_do_no_harm() -> None:
    q, k, v = 300 * drawn(1, HEADS, seed=0), drawn(48, KV_HEADS, seed=1), drawn(48, KV_HEADS, seed=2)
    everything = torch.ones(1, 48, dtype=torch.bool)
    found = attend_with_one(q, k, v)
    torch.testing.assert_close(found.double(), by_hand(q, k, v, everything), rtol=0, atol=1e-4)


def test_a_key_that_is_not_visible_may_hold_any_number() -> None:
    q, k, v = drawn(1, HEADS, seed=0), drawn(48, KV_HEADS, seed=1), drawn(48, KV_HEADS, seed=2)
    visible = torch.arange(48) <= 20
    expected = attend_with_one(q, k, v, bias_L=bias_of(visible))
    k[21:], v[21:] = 1e30, 1e30
    assert torch.equal(attend_with_one(q, k, v, bias_L=bias_of(visible)), expected)


def test_bfloat16_has_scores_and_sums_in_float32() -> None:
    """Off by the rounding of one number of bfloat16, not by that of many sums."""
    q, k, v = (drawn(n, h, seed=s).bfloat16() for s, (n, h) in enumerate([(1, 8), (2048, 2), (2048, 2)]))
    found = attend_with_one(10 * q, k, v)
    expected = by_hand(10 * q, k, v, torch.ones(1, 2048, dtype=torch.bool))
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() < 4e-3 * expected.norm()


def test_keys_and_values_are_read_where_they_lie() -> None:
    """A part of a larger cache is divided over parts without a copy, which would read and write all of it."""
    cache = torch.zeros(2048, BATCH, KV_HEADS, WIDTH)
    with torch.profiler.profile(record_shapes=True) as profile:
        attend_with_one(drawn(1, HEADS, seed=0), cache[:1024], cache[:1024])
    size = cache[:1024].numel()
    copies = [
        event
        for event in profile.events()
        if event.name in ("aten::copy_", "aten::clone")
        and any(torch.Size(shape).numel() >= size for shape in event.input_shapes if shape)
    ]
    assert copies == []
