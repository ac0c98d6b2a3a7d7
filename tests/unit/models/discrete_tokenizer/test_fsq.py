import itertools

import pytest
import torch

from cosmos_nemo.models.discrete_tokenizer.fsq import (
    bounded,
    check_levels,
    codes_of,
    ids_of,
    nearest_codes,
    num_codes,
)

RELEASED = (8, 8, 8, 5, 5, 5)
ANY_LEVELS = [RELEASED, (2, 2), (5,), (7, 4, 3, 2), (3, 16, 9)]


def z_of(levels: tuple[int, ...], scale: float = 1.5) -> torch.Tensor:
    return scale * torch.randn(2, len(levels), 3, 4, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("levels", ANY_LEVELS)
def test_every_id_has_a_code_of_its_own_and_comes_back(levels: tuple[int, ...]) -> None:
    ids = torch.arange(num_codes(levels))
    codes = codes_of(ids, levels)
    assert codes.shape == (len(ids), len(levels)) and codes.dtype == torch.float32
    assert len(codes.unique(dim=0)) == len(ids)
    back = ids_of(codes, levels)
    assert back.dtype == torch.int64 and torch.equal(back, ids)


def test_the_released_levels_make_64000_codes_whose_first_channel_counts_fastest() -> None:
    assert num_codes(RELEASED) == 64000
    place_values = [1, 8, 64, 512, 2560, 12800]
    for channel, value in enumerate(place_values):
        codes = codes_of(torch.tensor([0, value]), RELEASED)
        assert (codes[1] != codes[0]).nonzero().tolist() == [[channel]]
    assert codes_of(torch.tensor([0]), RELEASED).tolist() == [[-1.0] * 6]
    assert codes_of(torch.tensor([63999]), RELEASED).tolist() == [[0.75] * 3 + [1.0] * 3]


@pytest.mark.parametrize("levels", ANY_LEVELS)
def test_the_values_of_a_channel_are_all_reached_and_no_others(levels: tuple[int, ...]) -> None:
    z = torch.linspace(-6, 6, 4001).view(-1, 1).expand(-1, len(levels))
    codes = nearest_codes(z, levels)
    for channel, count in enumerate(levels):
        half = count // 2
        wanted = [(digit - half) / half for digit in range(count)]
        assert codes[:, channel].unique().tolist() == pytest.approx(wanted)
        assert (codes[1:, channel] >= codes[:-1, channel]).all()


@pytest.mark.parametrize("levels", ANY_LEVELS)
def test_the_bound_is_the_published_formula(levels: tuple[int, ...]) -> None:
    z = z_of(levels)
    for channel, count in enumerate(levels):
        own = z[:, channel].double()
        half, offset = (count - 1) * 1.001 / 2, 0.5 if count % 2 == 0 else 0.0
        shift = torch.atanh(torch.tensor(offset / half, dtype=torch.float64))
        wanted = torch.tanh(own + shift) * half - offset
        torch.testing.assert_close(bounded(z, levels)[:, channel].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", ANY_LEVELS)
def test_zero_is_the_middle(levels: tuple[int, ...]) -> None:
    zero = torch.zeros(1, len(levels), 1)
    assert bounded(zero, levels).abs().max() < 1e-6
    assert (nearest_codes(zero, levels) == 0).all()


@pytest.mark.parametrize("levels", [RELEASED, (7, 4, 3, 2), (129, 5)])
def test_ids_survive_codes_that_were_rounded_to_bfloat16(levels: tuple[int, ...]) -> None:
    ids = torch.arange(num_codes(levels))
    codes = codes_of(ids, levels)
    assert torch.equal(ids_of(codes.bfloat16(), levels), ids)
    if levels == RELEASED:
        assert torch.equal(codes.bfloat16().float(), codes)


def test_bfloat16_moves_a_digit_by_one_and_only_beside_a_boundary() -> None:
    z = z_of(RELEASED)
    exact, rounded = (nearest_codes(values, RELEASED) for values in (z, z.bfloat16()))
    moved = exact != rounded
    assert 0 < moved.float().mean() < 0.02
    steps = torch.tensor([4, 4, 4, 2, 2, 2]).view(1, -1, 1, 1, 1)
    assert ((exact - rounded) * steps).abs().max() == 1
    value = bounded(z, RELEASED)
    beside = (value - value.floor() - 0.5).abs()
    assert beside[moved].max() < 0.02


def test_a_value_in_bfloat16_is_treated_like_the_same_in_float32() -> None:
    z = z_of(RELEASED).bfloat16()
    assert torch.equal(nearest_codes(z, RELEASED), nearest_codes(z.float(), RELEASED))


def test_ids_keep_the_axes_of_a_batch_of_videos() -> None:
    z = z_of(RELEASED)
    ids = ids_of(nearest_codes(z, RELEASED), RELEASED)
    assert ids.shape == (2, 3, 4, 5)
    for b, t, h, w in itertools.product((0, 1), (0, 2), (1, 3), (0, 4)):
        alone = ids_of(nearest_codes(z[b, :, t, h, w][None], RELEASED), RELEASED)
        assert ids[b, t, h, w] == alone.item()
    assert torch.equal(codes_of(ids, RELEASED), nearest_codes(z, RELEASED))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("wrong", [-1, 64000, 64001])
def test_an_id_out_of_range_is_refused(wrong: int, dtype: torch.dtype) -> None:
    ids = torch.tensor([[5, 63999, 0, wrong]], dtype=dtype)
    with pytest.raises(ValueError, match=rf"id {wrong} is no video token: .* from 0 to 63999"):
        codes_of(ids, RELEASED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_ids_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="are no ids"):
        codes_of(torch.ones(1, 2, dtype=dtype), RELEASED)


@pytest.mark.parametrize("levels", [(), (8, 1), (8, 0), (8, -5), (2**32, 2**31)])
def test_levels_without_a_choice_or_too_many_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        check_levels(levels)


def test_levels_with_a_choice_pass() -> None:
    for levels in ANY_LEVELS:
        check_levels(levels)
