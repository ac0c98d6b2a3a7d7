import math
from dataclasses import replace

import pytest
import torch

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.models.token_transformer.positions import (
    absolute_embedding,
    inverse_frequencies,
    rotary_angles,
    token_positions,
)

RELEASED = TokenShape()
SCALED = replace(RELEASED, rope_scale=2.0)
WITH_TEXT = replace(RELEASED, text_dim=1024)
CPU = torch.device("cpu")


def test_the_released_heads_have_22_rates_of_frames_and_21_of_rows_and_columns() -> None:
    temporal, spatial = inverse_frequencies(RELEASED)
    assert temporal.tolist() == pytest.approx([500000 ** (-i / 22) for i in range(22)], rel=1e-5)
    assert spatial.tolist() == pytest.approx([500000 ** (-i / 21) for i in range(21)], rel=1e-5)


def test_the_12b_halves_low_rates_and_blends_those_between() -> None:
    """The numbers of spec/predict1-autoregressive.md, 1.1."""
    plain_t, plain_s = inverse_frequencies(RELEASED)
    temporal, spatial = inverse_frequencies(SCALED)
    assert torch.equal(temporal, plain_t / 2)
    assert spatial[:4].tolist() == pytest.approx([1.0, 0.48251, 0.18266, 0.07671], abs=1e-5)
    kept = plain_s > 2 * math.pi * 4 / 40
    halved = plain_s < 2 * math.pi / 40
    assert torch.equal(spatial[kept], plain_s[kept]) and torch.equal(spatial[halved], plain_s[halved] / 2)
    between = ~kept & ~halved
    assert between.any() and (spatial < plain_s)[between].all() and (spatial > plain_s / 2)[between].all()


def test_angles_count_frames_rows_and_columns_of_tokens_in_raster_order() -> None:
    angles = rotary_angles(RELEASED, 12800)
    temporal, spatial = inverse_frequencies(RELEASED)
    t, h, w = 3, 17, 50
    own = angles[(t * 40 + h) * 64 + w]
    assert torch.equal(own[:64], torch.cat([t * temporal, h * spatial, w * spatial]))
    assert torch.equal(own[64:], own[:64])
    assert angles.shape == (12800, 128)


def test_with_text_the_first_token_is_not_turned_and_the_others_are_as_without() -> None:
    angles, plain = rotary_angles(WITH_TEXT, 12864), rotary_angles(RELEASED, 12800)
    assert not angles[0].any() and not angles[12801:].any()
    assert torch.equal(angles[1:12801], plain)


def test_the_embedding_has_sines_then_cosines_of_each_axis_in_bfloat16() -> None:
    embedding = absolute_embedding(WITH_TEXT, 12864)
    assert embedding.shape == (12864, 4096) and embedding.dtype == torch.bfloat16
    t, h, w = 3, 17, 50
    parts = embedding[1 + (t * 40 + h) * 64 + w].split([1368, 1364, 1364])
    for place, part in zip((t, h, w), parts, strict=True):
        half = len(part) // 2
        angles = [place * 10000 ** (-i / half) for i in range(half)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert torch.equal(part, torch.tensor(expected, dtype=torch.float64).bfloat16())
    assert not embedding[0].any() and not embedding[12801:].any()


@pytest.mark.parametrize("shape", [RELEASED, WITH_TEXT])
def test_positions_are_the_first_of_a_longer_table(shape: TokenShape) -> None:
    some, all_ = (token_positions(shape, length, device=CPU) for length in (100, 300))
    for short, first in zip(some, all_.first(100), strict=True):
        assert (short is None and first is None) or torch.equal(short, first)
    assert some.cos.shape == (100, 1, 1, 128) and some.cos.dtype == torch.float32
    assert (some.absolute is None) == (not shape.takes_text)


def test_the_position_of_one_token_is_its_row() -> None:
    positions = token_positions(WITH_TEXT, 300, device=CPU)
    one = positions.at(torch.tensor(123))
    for row, table in zip(one, positions, strict=True):
        assert row is not None and table is not None and torch.equal(row, table[123:124])
