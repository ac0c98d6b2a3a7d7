from pathlib import Path

from cosmos_nemo.training.loop import StepReport
from cosmos_nemo.training.loss_log import LossLog


def report(step: int, loss: float = 0.5) -> StepReport:
    return StepReport(step, loss, gradient_norm=1.25, learning_rate=1e-6, seconds=0.1)


def lines(folder: Path) -> list[str]:
    return (folder / "losses.csv").read_text().splitlines()


def test_every_step_is_a_line_as_soon_as_it_is_done(tmp_path: Path) -> None:
    log = LossLog(tmp_path / "new", title="x")
    assert lines(tmp_path / "new") == ["step,loss,gradient_norm,learning_rate,seconds"]
    log.add(report(1, 0.1234567890123))
    assert lines(tmp_path / "new")[1:] == ["1,0.1234567890123,1.25,1e-06,0.1"]
    log.add(report(2))
    assert len(lines(tmp_path / "new")) == 3


def test_a_resumed_run_drops_the_lines_after_the_step_it_goes_on_from(tmp_path: Path) -> None:
    log = LossLog(tmp_path, title="x")
    for step in range(1, 6):
        log.add(report(step, step / 10))
    again = LossLog(tmp_path, title="x", from_step=3)
    assert (again.steps, again.losses) == ([1, 2, 3], [0.1, 0.2, 0.3])
    again.add(report(4, 9.0))
    assert [line.split(",")[:2] for line in lines(tmp_path)[1:]] == [
        ["1", "0.1"],
        ["2", "0.2"],
        ["3", "0.3"],
        ["4", "9.0"],
    ]


def test_a_run_from_the_start_empties_the_log(tmp_path: Path) -> None:
    LossLog(tmp_path, title="x").add(report(1))
    assert LossLog(tmp_path, title="x").steps == []
    assert len(lines(tmp_path)) == 1


def test_a_line_that_a_kill_has_cut_is_dropped(tmp_path: Path) -> None:
    log = LossLog(tmp_path, title="x")
    log.add(report(1))
    with log.path.open("a") as file:
        file.write("2,0.7")
    again = LossLog(tmp_path, title="x", from_step=2)
    assert again.steps == [1]
    again.add(report(2))
    assert lines(tmp_path)[2].startswith("2,0.5,")


def test_the_picture_is_drawn_once_there_is_a_loss(tmp_path: Path) -> None:
    log = LossLog(tmp_path, title="x")
    log.draw()
    assert not (tmp_path / "loss.png").exists()
    log.add(report(1))
    log.draw()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
