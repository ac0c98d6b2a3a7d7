"""losses.csv and loss.png of a run."""

import csv
from dataclasses import astuple, fields
from pathlib import Path

from cosmos_nemo.training.loop import StepReport
from cosmos_nemo.training.loss_picture import draw_losses

LOSSES, PICTURE = "losses.csv", "loss.png"
_COLUMNS = [field.name for field in fields(StepReport)]


class LossLog:
    """Appends a line per step; a resumed run first drops the lines after the step it goes on from."""

    def __init__(self, folder: Path, *, title: str, from_step: int = 0) -> None:
        self.path, self.picture, self.title = folder / LOSSES, folder / PICTURE, title
        kept = [row for row in _rows(self.path) if int(row[0]) <= from_step]
        self.steps, self.losses = [int(row[0]) for row in kept], [float(row[1]) for row in kept]
        folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{LOSSES}.partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_COLUMNS, *kept])
        partial.replace(self.path)

    def add(self, report: StepReport) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(astuple(report))
        self.steps.append(report.step)
        self.losses.append(report.loss)

    def draw(self) -> None:
        """Writes the picture, if there is anything to draw."""
        if self.steps:
            draw_losses(self.steps, self.losses, self.picture, title=self.title)


def _rows(path: Path) -> list[list[str]]:
    """The complete lines of the log so far; a kill may have cut the last one."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [row for row in rows[1:] if len(row) == len(_COLUMNS)]
