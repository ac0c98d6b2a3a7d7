"""The losses of a training as a picture, drawn without a plotting library."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

SIZE = 900, 500
_SCALE = 2
"""Drawn this much larger and then reduced, which smooths the lines."""
_LEFT, _TOP, _RIGHT, _BOTTOM = 74, 44, 872, 450
_PAPER, _INK, _GREY, _GRID = (255, 255, 255), (40, 40, 40), (110, 110, 110), (228, 228, 228)
_RAW, _MEAN = (150, 190, 230), (200, 60, 40)
_WIDE = 10.0
"""Losses whose largest is this many times the smallest get a logarithmic axis."""

Point = tuple[float, float]


def draw_losses(steps: Sequence[int], losses: Sequence[float], path: Path, *, title: str) -> None:
    """Writes a PNG of 900 x 500: each step's loss as a thin line, their running mean as a thick one.

    Steps that have no finite loss are left out and counted in the heading. The picture appears whole.
    """
    from PIL import Image, ImageDraw

    points = [(step, loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
    picture = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), _PAPER)
    pen = _Pen(ImageDraw.Draw(picture))
    window = max(1, min(200, len(points) // 20))
    pen.text((_LEFT, 12), title, size=17, color=_INK)
    if points:
        _draw_chart(pen, points, mean=running_mean([loss for _, loss in points], window=window))
        _draw_legend(pen, window=window, num_left_out=len(losses) - len(points))
    else:
        pen.text(
            ((_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2), "no losses yet", size=17, color=_GREY, anchor="mm"
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.part.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        picture.resize(SIZE, Image.Resampling.LANCZOS).save(partial, format="PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def running_mean(losses: Sequence[float], *, window: int) -> list[float]:
    """At each place the mean of the about `window` losses around it, of fewer at the ends."""
    half = window // 2
    around = (losses[max(0, at - half) : at + half + 1] for at in range(len(losses)))
    return [sum(some) / len(some) for some in around]


def round_ticks(low: float, high: float, *, most: int) -> list[float]:
    """At most about `most` multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    rough = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or the powers alone where those would be many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(exponents) <= 4 else (1,)
    every = max(1, len(exponents) // 8)
    ticks = [factor * 10.0**exponent for exponent in exponents[::every] for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


@dataclass(frozen=True)
class _Axis:
    """Values from `low` to `high` on the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.is_log else round_ticks(self.low, self.high, most=7)


def _steps_axis(points: Sequence[Point]) -> _Axis:
    low, high = min(step for step, _ in points), max(step for step, _ in points)
    return _Axis(low, high if high > low else low + 1, _LEFT, _RIGHT)


def _losses_axis(points: Sequence[Point]) -> _Axis:
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    if low > 0 and high / low > _WIDE:
        return _Axis(low / 1.1, high * 1.1, _BOTTOM, _TOP, is_log=True)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return _Axis(low - room, high + room, _BOTTOM, _TOP)


def _draw_chart(pen: "_Pen", points: Sequence[Point], *, mean: Sequence[float]) -> None:
    across, up = _steps_axis(points), _losses_axis(points)
    for tick in up.ticks():
        pen.line([(_LEFT, up.place(tick)), (_RIGHT, up.place(tick))], width=1, color=_GRID)
        pen.text((_LEFT - 8, up.place(tick)), f"{tick:.6g}", size=13, color=_INK, anchor="rm")
    for tick in across.ticks():
        if tick == round(tick):
            pen.line([(across.place(tick), _BOTTOM), (across.place(tick), _BOTTOM + 5)], width=1, color=_INK)
            pen.text((across.place(tick), _BOTTOM + 9), f"{tick:,.0f}", size=13, color=_INK, anchor="ma")
    pen.text(((_LEFT + _RIGHT) / 2, SIZE[1] - 8), "step", size=13, color=_GREY, anchor="ms")
    steps = [across.place(step) for step, _ in points]
    pen.line([(x, up.place(loss)) for x, (_, loss) in zip(steps, points, strict=True)], width=1, color=_RAW)
    pen.line([(x, up.place(loss)) for x, loss in zip(steps, mean, strict=True)], width=2.5, color=_MEAN)
    pen.line([(_LEFT, _TOP), (_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)], width=1, color=_INK)


def _draw_legend(pen: "_Pen", *, window: int, num_left_out: int) -> None:
    if num_left_out:
        pen.text((_RIGHT, 12), f"{num_left_out} not finite", size=13, color=_MEAN, anchor="ra")
    entries = [("loss", _RAW, 1.0), (f"mean of {window}", _MEAN, 2.5)]
    for number, (text, color, width) in enumerate(entries):
        y = _TOP + 16 + 20 * number
        pen.line([(_RIGHT - 140, y), (_RIGHT - 112, y)], width=width, color=color)
        pen.text((_RIGHT - 104, y), text, size=13, color=_INK, anchor="lm")


class _Pen:
    """Draws in the picture's own pixels on a surface `_SCALE` times as large."""

    def __init__(self, draw: "ImageDraw") -> None:
        self.draw = draw

    def line(self, points: Sequence[Point], *, width: float, color: tuple[int, int, int]) -> None:
        """One point alone becomes a dot."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        if len(scaled) == 1:
            (x, y), radius = scaled[0], 2 * _SCALE
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        else:
            self.draw.line(scaled, fill=color, width=round(width * _SCALE), joint="curve")

    def text(
        self, at: Point, text: str, *, size: int, color: tuple[int, int, int], anchor: str = "la"
    ) -> None:
        self.draw.text(
            (at[0] * _SCALE, at[1] * _SCALE), text, fill=color, font=_font(size * _SCALE), anchor=anchor
        )


def _font(size: int) -> "ImageFont | FreeTypeFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)
