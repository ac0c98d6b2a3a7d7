"""losses.csv and loss.png of a training that tells its loss now and then."""

import contextlib
import csv
import math
from pathlib import Path
from types import TracebackType

from cosmos_nemo.training.loss_log import LOSSES, PICTURE
from cosmos_nemo.training.loss_picture import draw_losses


class Losses:
    """Notes each loss once, when it is first told; written and drawn when the context ends, however it does.

    A training that goes on from a saved step leaves out what was noted after it.
    """

    def __init__(self, folder: Path, *, title: str) -> None:
        self.folder, self.title = folder, title
        self._losses = dict(_read(folder / LOSSES))
        self._began = False
        self._last = math.nan

    def __enter__(self) -> "Losses":
        return self

    def add(self, step: int, loss: float) -> None:
        """step: how many are finished; loss: the last one that was read, NaN if none was."""
        if not self._began:
            self._losses = {number: value for number, value in self._losses.items() if number < step}
            self._began = True
        if loss != self._last and math.isfinite(loss):
            self._losses[step] = self._last = loss

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._losses:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOSSES).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("step", "loss"), *self._losses.items()])
        draw_losses(list(self._losses), list(self._losses.values()), self.folder / PICTURE, title=self.title)


def _read(path: Path) -> list[tuple[int, float]]:
    """Without lines that a stopped process left half written: no curve is worth a training that ends."""
    if not path.is_file():
        return []
    found = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in list(csv.reader(file))[1:]:
            with contextlib.suppress(ValueError, IndexError):
                found.append((int(row[0]), float(row[1])))
    return found
