"""A contact sheet: some frames of each of some videos in one picture.

T frames, H W rows and columns; frames are uint8 0..255.
"""

from collections.abc import Sequence

import numpy
from PIL import Image, ImageDraw, ImageFont

_FRAMES_WIDTH = 1600
"""Frames are made smaller until a row of them is no wider."""
_LEAST_WIDTH = 400
"""A narrower sheet would leave no room for the texts."""
_GAP, _MARGIN, _FONT_SIZE, _LINE_HEIGHT, _MOST_LINES = 4, 12, 15, 20, 4
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


def contact_sheet(videos: Sequence[tuple[str, numpy.ndarray]], *, num_frames: int = 8) -> Image.Image:
    """One row per (text, frames [T, H, W, 3]): the text, and `num_frames` frames at even distances below it.

    The first and the last frame are among them; a shorter video shows all it has. Text beyond four lines is
    cut.
    """
    if not videos or num_frames < 1:
        raise ValueError(
            f"{len(videos)} videos, {num_frames} frames of each: a sheet has at least one of both"
        )
    strips = [_strip(frames_THWC, num_frames=num_frames) for _, frames_THWC in videos]
    width = max(_LEAST_WIDTH, *(strip.width for strip in strips))
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [_wrapped(text, font, width=width) for text, _ in videos]
    rows = [
        len(lines) * _LINE_HEIGHT + strip.height + _MARGIN for lines, strip in zip(texts, strips, strict=True)
    ]
    sheet = Image.new("RGB", (width + 2 * _MARGIN, sum(rows) + _MARGIN), _PAPER)
    draw, top = ImageDraw.Draw(sheet), _MARGIN
    for lines, strip, height in zip(texts, strips, rows, strict=True):
        for number, line in enumerate(lines):
            draw.text((_MARGIN, top + number * _LINE_HEIGHT), line, fill=_INK, font=font)
        sheet.paste(strip, (_MARGIN, top + len(lines) * _LINE_HEIGHT))
        top += height
    return sheet


def evenly_spaced(num_frames: int, *, count: int) -> list[int]:
    """`count` frame numbers from the first to the last of `num_frames`, or all if there are fewer."""
    if count >= num_frames:
        return list(range(num_frames))
    return [round(number) for number in numpy.linspace(0, num_frames - 1, count).tolist()]


def _strip(frames_THWC: numpy.ndarray, *, num_frames: int) -> Image.Image:
    chosen = evenly_spaced(len(frames_THWC), count=num_frames)
    height, width = frames_THWC.shape[1:3]
    shrink = min(1.0, (_FRAMES_WIDTH - _GAP * (len(chosen) - 1)) / (len(chosen) * width))
    size = max(1, int(width * shrink)), max(1, int(height * shrink))
    strip = Image.new("RGB", (len(chosen) * (size[0] + _GAP) - _GAP, size[1]), _PAPER)
    for place, number in enumerate(chosen):
        image = Image.fromarray(numpy.ascontiguousarray(frames_THWC[number]))
        strip.paste(image.resize(size, Image.Resampling.LANCZOS), (place * (size[0] + _GAP), 0))
    return strip


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, *, width: int) -> list[str]:
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"{lines[_MOST_LINES - 1]} ..."]
    return [line for line in lines if line]
