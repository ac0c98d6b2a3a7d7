import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.sampling.tokens import (
    TokenSampling,
    TokenSamplingError,
    draw,
    draw_by_uniforms,
    draw_uniforms,
    probabilities,
)

FOUR = torch.tensor([[0.3, 0.1, 0.4, 0.2]]).log()
ALL = TokenSampling(top_p=None)
WAYS = (
    ALL,
    TokenSampling(0.7, top_p=0.8),
    TokenSampling(1.5, top_p=1.0),
    TokenSampling(1.3, top_p=None, top_k=5),
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exponentials(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(seed))


def uniforms(count: int, *, seed: int = 0) -> Tensor:
    return draw_uniforms([seed], count)[:, 0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is not"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_p": 1.01}, "top_p 1.01 is no probability"),
        ({"top_p": -0.5}, "top_p -0.5"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"top_p": None, "top_k": 0}, "top_k 0 leaves no token"),
        ({"top_k": 5}, "top_p 0.8 and top_k 5 exclude each other: pass None for one"),
    ],
)
def test_a_way_to_draw_that_does_not_exist_is_refused_with_a_way_out(
    wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(TokenSamplingError, match=words):
        TokenSampling(**wrong)


@pytest.mark.parametrize("right", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.0}, {"top_p": None}])
def test_the_ends_of_each_range_are_allowed(right: dict[str, Any]) -> None:
    assert probabilities(FOUR, TokenSampling(**right)).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.0, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1.0, 4)]
)
def test_tokens_count_until_those_before_have_more_than_top_p(top_p: float, kept: int) -> None:
    found = probabilities(FOUR, TokenSampling(top_p=top_p))
    expected = torch.tensor([0.3, 0.1, 0.4, 0.2], dtype=torch.float64)
    expected[expected.argsort(descending=True)[kept:]] = 0
    torch.testing.assert_close(found, (expected / expected.sum())[None], atol=1e-7, rtol=0)


@pytest.mark.parametrize(("top_k", "kept"), [(1, [2]), (2, [0, 2]), (4, [0, 1, 2, 3]), (10**9, [0, 1, 2, 3])])
def test_the_top_k_likeliest_tokens_count(top_k: int, kept: list[int]) -> None:
    found = probabilities(FOUR, TokenSampling(top_p=None, top_k=top_k))
    assert found[0].nonzero().flatten().tolist() == kept


def test_tokens_as_likely_as_the_last_of_top_k_count_too() -> None:
    found = probabilities(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), TokenSampling(top_p=None, top_k=2))
    assert (found[0] > 0).tolist() == [True, True, True, False]


def test_a_temperature_flattens_or_sharpens() -> None:
    expected = torch.tensor([0.3, 0.1, 0.4, 0.2], dtype=torch.float64) ** 2
    found = probabilities(FOUR, TokenSampling(0.5, top_p=None))
    torch.testing.assert_close(found, (expected / expected.sum())[None], atol=1e-7, rtol=0)


@pytest.mark.parametrize("sampling", [TokenSampling(0.0), TokenSampling(0.0, top_p=None, top_k=3)])
def test_temperature_0_takes_the_likeliest_token(sampling: TokenSampling) -> None:
    logits = random(6, 40)
    likeliest = logits.argmax(dim=-1)
    assert torch.equal(draw(logits, sampling, exponentials(6, 40)), likeliest)
    assert torch.equal(draw_by_uniforms(logits, sampling, uniforms(6)), likeliest)
    assert torch.equal(probabilities(logits, sampling), torch.eye(40, dtype=torch.float64)[likeliest])


@pytest.mark.parametrize("temperature", [1e-30, 5e-324])
def test_the_lowest_temperatures_are_almost_greedy_and_finite(temperature: float) -> None:
    logits = 100 * random(6, 40)
    for sampling in (TokenSampling(temperature), TokenSampling(temperature, top_p=None, top_k=3)):
        assert torch.equal(draw_by_uniforms(logits, sampling, uniforms(6)), logits.argmax(dim=-1))
        assert torch.isfinite(probabilities(logits, sampling)).all()


@pytest.mark.parametrize("sampling", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_sum_to_1_in_float64(sampling: TokenSampling, dtype: torch.dtype) -> None:
    found = probabilities(random(3, 1000).to(dtype), sampling)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)


def _by_exponentials(logits_BV: Tensor, sampling: TokenSampling) -> Tensor:
    return draw(logits_BV, sampling, exponentials(*logits_BV.shape, seed=11))


def _by_uniforms(logits_BV: Tensor, sampling: TokenSampling) -> Tensor:
    return draw_by_uniforms(logits_BV, sampling, uniforms(len(logits_BV), seed=11))


@pytest.mark.parametrize("way", [_by_exponentials, _by_uniforms])
@pytest.mark.parametrize("sampling", WAYS)
def test_tokens_have_their_probabilities_however_they_are_drawn(way: Any, sampling: TokenSampling) -> None:
    """Chi-square against the probabilities themselves; 99.9 % of draws are below the bound."""
    logits, draws = 1.5 * random(1, 24, seed=4), 40_000
    expected = draws * probabilities(logits, sampling)[0]
    counts = way(logits.expand(draws, -1), sampling).bincount(minlength=24)
    counted = expected > 0
    assert counts[~counted].sum() == 0
    chi_square = ((counts - expected) ** 2 / expected)[counted].sum()
    freedom = int(counted.sum()) - 1
    # Wilson and Hilferty's approximation of the quantile.
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_exponentials_belong_to_tokens_from_the_likeliest_on_with_top_p_only() -> None:
    least_for_second = torch.tensor([[1.0, 1e-6, 1.0, 1.0]])
    assert draw(FOUR, TokenSampling(top_p=1.0), least_for_second).tolist() == [0]
    assert draw(FOUR, ALL, least_for_second).tolist() == [1]


def test_an_exponential_of_0_does_not_draw_a_token_that_does_not_count() -> None:
    assert draw(FOUR, TokenSampling(top_p=0.5), torch.tensor([[1.0, 1.0, 0.0, 1.0]])).tolist() == [2]


def test_a_uniform_number_goes_through_the_tokens_in_order() -> None:
    numbers = torch.tensor([0.0, 0.35, 0.45, 0.75, 1 - 2**-53], dtype=torch.float64)
    rows = FOUR.expand(5, -1)
    assert draw_by_uniforms(rows, TokenSampling(top_p=1.0), numbers).tolist() == [2, 2, 0, 3, 1]
    assert draw_by_uniforms(rows, TokenSampling(top_p=0.5), numbers).tolist() == [2, 2, 2, 0, 0]
    assert draw_by_uniforms(rows, ALL, numbers).tolist() == [0, 1, 2, 2, 3]


def test_the_highest_uniform_number_draws_a_token_that_counts() -> None:
    logits = random(64, 5000, seed=2)
    highest = torch.full((64,), 1 - 2**-53, dtype=torch.float64)
    for sampling in WAYS:
        tokens = draw_by_uniforms(logits, sampling, highest)
        assert (probabilities(logits, sampling).gather(1, tokens[:, None]) > 0).all()


@pytest.mark.parametrize("sampling", [*WAYS, TokenSampling(0.0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_tokens_of_the_vocabulary(
    sampling: TokenSampling, bad: float
) -> None:
    logits = torch.full((3, 10), bad)
    tokens = draw_by_uniforms(logits, sampling, torch.tensor([0.0, 0.5, 0.99], dtype=torch.float64))
    assert tokens.min() >= 0 and tokens.max() < 10


def test_uniform_numbers_are_those_of_each_seed_whatever_stands_beside_and_follows() -> None:
    many = draw_uniforms([3, 4, 3], 100)
    assert many.dtype == torch.float64 and many.shape == (100, 3)
    assert torch.equal(many[:40, 1:2], draw_uniforms([4], 40))
    assert torch.equal(many[:, 0], many[:, 2]) and not torch.equal(many[:, 0], many[:, 1])
    assert many.min() >= 0 and many.max() < 1


def test_uniform_numbers_leave_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    draw_uniforms([0, 2**32 - 1], 5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_equal_logits_are_taken_in_the_order_of_the_vocabulary() -> None:
    equal = torch.zeros(1, 6000, dtype=torch.bfloat16)
    number = torch.tensor([0.25 + 1e-5], dtype=torch.float64)
    assert draw_by_uniforms(equal, TokenSampling(top_p=1.0), number).tolist() == [1500]


def test_the_lowest_uniform_number_passes_by_tokens_that_do_not_count() -> None:
    lowest = torch.zeros(1, dtype=torch.float64)
    assert draw_by_uniforms(FOUR, TokenSampling(top_p=None, top_k=1), lowest).tolist() == [2]
