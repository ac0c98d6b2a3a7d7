import math
import os
from pathlib import Path

import numpy
import pytest
from PIL import Image

from cosmos_nemo.training import loss_picture
from cosmos_nemo.training.loss_picture import draw_losses, log_ticks, round_ticks, running_mean

RED, BLUE = numpy.array([200, 60, 40]), numpy.array([150, 190, 230])


def draw(path: Path, losses: list[float]) -> numpy.ndarray:
    draw_losses(range(1, len(losses) + 1), losses, path, title="a title")
    return numpy.asarray(Image.open(path)).astype(int)


def height_of(picture: numpy.ndarray, color: numpy.ndarray, *, column: int) -> float:
    """The mean row of `color` in some columns from `column`, without the legend and the heading."""
    part = picture[100:450, column : column + 5]
    rows = numpy.argwhere(numpy.abs(part - color).max(axis=2) < 40)[:, 0]
    return 100 + float(rows.mean())


def test_a_falling_loss_falls_in_the_picture(tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png", [3 - step / 100 for step in range(200)])
    assert picture.shape == (500, 900, 3)
    heights = [height_of(picture, RED, column=column) for column in (200, 400, 600, 800)]
    assert heights == sorted(heights) and heights[-1] - heights[0] > 200


def test_a_wide_range_gets_a_logarithmic_axis(tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png", [1000 * 0.97**step for step in range(400)])
    heights = [height_of(picture, RED, column=column) for column in (300, 500, 700)]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=3)


@pytest.mark.parametrize("losses", [[], [0.5], [0.0, 0.0], [-1.0, 2.0], [math.nan], [1e30, 1e-30], [7.0] * 3])
def test_any_losses_make_a_picture(tmp_path: Path, losses: list[float]) -> None:
    picture = draw(tmp_path / "new" / "a.png", losses)
    assert (picture < 100).any()


def test_losses_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    clean = draw(tmp_path / "a.png", [1.0, 2.0, 3.0])
    gaps = draw(tmp_path / "b.png", [1.0, math.nan, 3.0])
    assert (numpy.abs(clean[100:] - gaps[100:]).max(axis=2) > 100).mean() < 0.001
    assert not numpy.array_equal(clean[:40], gaps[:40])


def test_the_running_mean_does_not_lag() -> None:
    assert running_mean([0.0, 1.0, 2.0, 3.0, 4.0], window=3) == [0.5, 1.0, 2.0, 3.0, 3.5]
    assert running_mean([4.0, 2.0], window=1) == [4.0, 2.0]


def test_ticks_are_round_numbers_inside() -> None:
    assert round_ticks(0, 2000, most=7) == [0, 500, 1000, 1500, 2000]
    assert round_ticks(0.21, 0.49, most=7) == pytest.approx([0.25, 0.3, 0.35, 0.4, 0.45])
    assert log_ticks(0.15, 12) == pytest.approx([0.2, 0.5, 1, 2, 5, 10])
    assert log_ticks(0.5e-3, 2e3) == pytest.approx([1e-3, 1e-2, 0.1, 1, 10, 100, 1000])


def test_an_interrupt_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png", [1.0, 2.0])
    before = (tmp_path / "a.png").read_bytes()

    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loss_picture.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "a.png", [2.0, 1.0])
    assert os.listdir(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == before
