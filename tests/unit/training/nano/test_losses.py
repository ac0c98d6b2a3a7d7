import math
from pathlib import Path

import pytest

from cosmos_nemo.training.nano.losses import Losses


def rows(folder: Path) -> list[str]:
    return (folder / "losses.csv").read_text().split()


def test_each_loss_is_noted_when_it_was_first_told_and_drawn(tmp_path: Path) -> None:
    with Losses(tmp_path / "log", title="a training") as losses:
        for step, loss in enumerate((math.nan, 3.0, 3.0, 2.0), start=1):
            losses.add(step, loss)
    assert rows(tmp_path / "log") == ["step,loss", "2,3.0", "4,2.0"]
    assert (tmp_path / "log/loss.png").stat().st_size > 1000


def test_a_training_that_goes_on_drops_what_came_after_the_state_it_has(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Losses(tmp_path, title="a training") as losses:
        for step, loss in ((1, 5.0), (21, 4.0), (41, 3.0)):
            losses.add(step, loss)
        raise KeyboardInterrupt
    with Losses(tmp_path, title="a training") as losses:
        losses.add(31, math.nan)
        losses.add(41, 2.5)
    assert rows(tmp_path) == ["step,loss", "1,5.0", "21,4.0", "41,2.5"]


def test_nothing_is_written_of_nothing(tmp_path: Path) -> None:
    with Losses(tmp_path / "log", title="a training"):
        pass
    assert not (tmp_path / "log").exists()


def test_a_curve_that_was_half_written_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "losses.csv").write_bytes(b"step,loss\n1,5.0\n2,4\xff\n3\nthree,2.0\n\n4,")
    with Losses(tmp_path, title="a training") as losses:
        losses.add(21, 3.0)
    assert rows(tmp_path) == ["step,loss", "1,5.0", "21,3.0"]
