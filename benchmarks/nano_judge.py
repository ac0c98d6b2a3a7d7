"""What a nano world video shows, read from its pixels alone.

Shares nothing with the generator of the nano world but the words: colour ranges, templates and limits are its
own, so that a mistake there cannot hide here. Whatever it is not sure of is "unclear".

Axes: T frames, H rows, W columns, C red, green and blue. Masks are boolean [T, H, W].
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNCLEAR = "unclear"
ATTRIBUTES = ("colour", "shape", "motion", "ground")

Mask = NDArray[np.bool_]
Frames = NDArray[np.uint8]
Floats = NDArray[Any]

_BORDER = 4
"""Pixels from the edge that are taken for the ground; an object may cover a part of them."""
_PLAIN = 24
"""Levels by which a pixel of the ground, or the ground of a frame, may differ from the video's."""
_CONTRAST = 36
"""Levels by which anything must differ from the ground to be seen at all."""
_SMALLEST, _LARGEST = 0.012, 0.25
"""An object's share of the frame; a triangle of 28 pixels covers 0.024 of 128 x 128."""
_MOST = 0.85
"""Share of the frames in which something must hold to hold for the video."""
_LEFT_OVER = 0.12
"""Share of the object's pixels that may lie apart from it: specks of a compression, no second object."""
_UNIFORM = 60
"""Levels by which a pixel inside the object may differ from its colour."""

_HUES = {
    "red": (-20.0, 18.0),
    "yellow": (38.0, 72.0),
    "green": (85.0, 165.0),
    "blue": (200.0, 255.0),
    "purple": (262.0, 320.0),
}
"""Degrees; the gaps belong to no colour."""

_OVERLAP, _LEAD = 0.7, 0.04
"""How well the best template must fit the object, and by how much better than the others."""
_ASPECT = 1.4
"""How much longer than wide (or wider than long) an object may be."""

_STILL = 7.0
"""Pixels, of a frame of 128, within which an object that stays still may wander."""
_WAY = 20.0
"""The least way that is a movement."""
_ASIDE = 0.35
"""The most sideways movement along a straight way, and the most detour, as a share of it."""
_SWING = 12.0
"""The least rise or fall that counts as part of a bounce."""
_TURNS = 3
"""Turns of two bounces: up and down and up and down."""

_TEAL, _AMBER = (162.0, 198.0), (14.0, 52.0)
_LEAST_TEAL, _LEAST_AMBER = 0.004, 0.0008
"""Shares of the frame that the subject's two tones must cover."""


@dataclass(frozen=True)
class Verdict:
    """One word of the nano world's vocabulary for each attribute, or "unclear"."""

    colour: str
    shape: str
    motion: str
    ground: str


def judge(frames_THWC: Frames) -> Verdict:
    """What a video of one object on a plain ground shows; frames uint8, two or more.

    Two objects of one colour, or one in tatters, still have that colour, but no clear shape or motion.
    """
    ground_C = _ground_colour(frames_THWC)
    if ground_C is None:
        return Verdict(UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR)
    ground = _ground_word(ground_C)
    seen_THW = _object_mask(frames_THWC, ground_C)
    blob_THW = _largest_blob(seen_THW)
    if not _is_one_object(seen_THW, blob_THW):
        return Verdict(_colour(frames_THWC, seen_THW), UNCLEAR, UNCLEAR, ground)
    return Verdict(_colour(frames_THWC, blob_THW), _shape(blob_THW), _motion(blob_THW), ground)


def shows_teal_figure(frames_THWC: Frames) -> bool:
    """Whether most frames show one figure in teal and amber, the two touching each other."""
    hue, saturation, value = _hsv(frames_THWC)
    vivid = (saturation > 0.45) & (value > 60)
    teal = vivid & _between(hue, _TEAL)
    amber = vivid & _between(hue, _AMBER)
    # Between two tones that touch lie blended pixels of neither, so that the figure is closed over gaps.
    figure = _largest_blob(_grown(teal | amber))
    area = frames_THWC.shape[1] * frames_THWC.shape[2]
    shown = (
        (_count(teal & figure) > _LEAST_TEAL * area)
        & (_count(amber & figure) > _LEAST_AMBER * area)
        & (_count(figure) < _LARGEST * area)
        & (_count(teal & figure) > 0.8 * _count(teal))
    )
    return bool(shown.mean() >= _MOST)


def judge_figure(frames_THWC: Frames) -> Verdict:
    """As `judge`, for a figure of several tones and parts: its motion and its ground; the rest is unclear."""
    ground_C = _ground_colour(frames_THWC)
    if ground_C is None:
        return Verdict(UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR)
    whole_THW = _grown(_object_mask(frames_THWC, ground_C))
    blob_THW = _largest_blob(whole_THW)
    motion = _motion(blob_THW) if _is_one_object(whole_THW, blob_THW) else UNCLEAR
    return Verdict(UNCLEAR, UNCLEAR, motion, _ground_word(ground_C))


def judge_to_the_end(frames_THWC: Frames) -> Verdict:
    """As `judge`, but the colour and the shape are only those that the last third of the video still has."""
    whole, end = judge(frames_THWC), judge(frames_THWC[-max(len(frames_THWC) // 3, 2) :])
    return replace(
        whole,
        colour=whole.colour if end.colour == whole.colour else UNCLEAR,
        shape=whole.shape if end.shape == whole.shape else UNCLEAR,
    )


def centres(frames_THWC: Frames) -> Floats:
    """Where the middle of the object lies, row and column [T, 2], NaN in frames without an object.

    In pixels of a frame of 128. Every pixel is the object's or not: the centre of two half transparent
    objects lies in one of them, not between them.
    """
    places = np.full((len(frames_THWC), 2), np.nan)
    ground_C = _ground_colour(frames_THWC)
    if ground_C is None:
        return places
    blob_THW = _largest_blob(_object_mask(frames_THWC, ground_C))
    for frame, blob_HW in enumerate(blob_THW):
        if blob_HW.any():
            places[frame] = np.argwhere(blob_HW).mean(axis=0)
    return places * (128 / max(frames_THWC.shape[1:3]))


def _ground_colour(frames_THWC: Frames) -> Floats | None:
    """The border's median, None unless the border is plain and stays the same."""
    inside = np.zeros(frames_THWC.shape[1:3], dtype=bool)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    border_TPC = frames_THWC[:, ~inside].astype(np.float32)
    ground_C = np.median(border_TPC.reshape(-1, 3), axis=0)
    is_plain_T = (_apart(border_TPC, ground_C) < _PLAIN).mean(axis=1) > 0.6
    is_steady_T = _apart(np.median(border_TPC, axis=1), ground_C) < _PLAIN
    return ground_C if (is_plain_T & is_steady_T).mean() >= _MOST else None


def _ground_word(ground_C: Floats) -> str:
    red, _, blue = (float(level) for level in ground_C)
    spread = float(ground_C.max() - ground_C.min())
    mean = float(ground_C.mean())
    if mean < 70 and spread < 40:
        return "dark"
    if 90 < mean < 175 and spread < 30:
        return "gray"
    if mean > 160 and 40 < blue - red < 130:
        return "light blue"
    return UNCLEAR


def _object_mask(frames_THWC: Frames, ground_C: Floats) -> Mask:
    """Pixels nearer to the object's colour than to the ground's: an edge stays in place however blurred."""
    contrast_THW = _apart(frames_THWC.astype(np.float32), ground_C)
    seen = contrast_THW[contrast_THW > _CONTRAST]
    half = np.median(seen) / 2 if seen.size else _CONTRAST
    return contrast_THW > max(half, _CONTRAST)


def _is_one_object(seen_THW: Mask, blob_THW: Mask) -> bool:
    area = seen_THW.shape[1] * seen_THW.shape[2]
    size_T = _count(blob_THW)
    is_alone_T = _count(seen_THW) - size_T <= _LEFT_OVER * size_T
    has_size_T = (size_T > _SMALLEST * area) & (size_T < _LARGEST * area)
    is_steady_T = (size_T > 0.6 * np.median(size_T)) & (size_T < 1.5 * np.median(size_T))
    return bool((is_alone_T & has_size_T & is_steady_T).mean() >= _MOST)


def _colour(frames_THWC: Frames, blob_THW: Mask) -> str:
    words = [
        _colour_word(frame_HWC[core_HW].astype(np.float32))
        for frame_HWC, core_HW in zip(frames_THWC, _shrunk(blob_THW, times=3), strict=True)
        if core_HW.any()
    ]
    best = max(set(words), key=words.count, default=UNCLEAR)
    return best if words.count(best) >= _MOST * len(blob_THW) else UNCLEAR


def _colour_word(pixels_PC: Floats) -> str:
    median_C = np.median(pixels_PC, axis=0)
    if (_apart(pixels_PC, median_C) < _UNIFORM).mean() < 0.75:
        return UNCLEAR
    hue, saturation, value = (float(part) for part in _hsv(median_C))
    if saturation < 0.2:
        return "white" if value > 190 else UNCLEAR
    if saturation < 0.35 or value < 90:
        return UNCLEAR
    return next((word for word, limits in _HUES.items() if bool(_between(hue, limits))), UNCLEAR)


def _shape(blob_THW: Mask) -> str:
    fits = [_template_fits(blob_HW) for blob_HW in blob_THW if blob_HW.any()]
    mean = {word: float(np.mean([fit[word] for fit in fits])) for word in fits[0]}
    best, second = sorted(mean, key=lambda word: -mean[word])[:2]
    is_clear = mean[best] >= _OVERLAP and mean[best] - mean[second] >= _LEAD
    return best if is_clear and _aspect(blob_THW) < _ASPECT else UNCLEAR


def _template_fits(blob_HW: Mask) -> dict[str, float]:
    """Intersection over union of the object and each shape that fills the object's box."""
    top, bottom, left, right = _box(blob_HW)
    cut = blob_HW[top:bottom, left:right]
    down, across = np.ogrid[: bottom - top, : right - left]
    y, x = (down + 0.5) / (bottom - top), (across + 0.5) / (right - left)
    templates = {
        "ball": (2 * y - 1) ** 2 + (2 * x - 1) ** 2 <= 1,
        "square": (y >= 0) & (x >= 0),
        "triangle": np.abs(2 * x - 1) <= y,
    }
    return {
        word: np.count_nonzero(cut & shape) / np.count_nonzero(cut | shape)
        for word, shape in templates.items()
    }


def _aspect(blob_THW: Mask) -> float:
    boxes = [_box(blob_HW) for blob_HW in blob_THW if blob_HW.any()]
    ratio = float(np.median([(bottom - top) / (right - left) for top, bottom, left, right in boxes]))
    return max(ratio, 1 / ratio)


def _motion(blob_THW: Mask) -> str:
    """From the way of the object's centre; frames without an object are passed over."""
    scale = 128 / max(blob_THW.shape[1:])
    centres = np.array([np.argwhere(blob_HW).mean(axis=0) for blob_HW in blob_THW if blob_HW.any()]) * scale
    if np.ptp(centres, axis=0).max() < _STILL:
        return "stays still"
    if _turns(centres[:, 0]) >= _TURNS and np.ptp(centres[:, 1]) < _WAY:
        return "bounces"
    return _straight(centres)


def _straight(centres_T2: Floats) -> str:
    """The direction of a way that hardly bends or turns back. Rows count downwards."""
    down, right = (float(way) for way in centres_T2[-3:].mean(axis=0) - centres_T2[:3].mean(axis=0))
    along, aside = (1, abs(down)) if abs(right) > abs(down) else (0, abs(right))
    way = max(abs(right), abs(down))
    detour = float(np.ptp(centres_T2[:, along])) - way
    if way < _WAY or aside > _ASIDE * way or np.ptp(centres_T2[:, 1 - along]) > way:
        return UNCLEAR
    if detour > _ASIDE * way + 8:
        return UNCLEAR
    if along == 1:
        return "moves to the right" if right > 0 else "moves to the left"
    return "moves down" if down > 0 else "moves up"


def _turns(track_T: Floats) -> int:
    """How often the track turns back by a swing or more."""
    turns, heading, extreme = -1, 0.0, float(track_T[0])
    for place in (float(each) for each in track_T):
        moved = place - extreme
        if moved * heading > 0:
            extreme = place
        elif abs(moved) >= _SWING:
            turns, heading, extreme = turns + 1, math.copysign(1, moved), place
    return max(turns, 0)


def _largest_blob(mask_THW: Mask) -> Mask:
    """Of each frame, the pixels connected (by edges) to the place where the mask is densest."""
    blob = _densest(mask_THW) & mask_THW
    while True:
        grown = _along_columns(_along_rows(blob, mask_THW), mask_THW)
        if np.array_equal(grown, blob):
            return blob
        blob = grown


def _densest(mask_THW: Mask, *, side: int = 9) -> Mask:
    """One pixel of each frame: the middle of the side x side window that holds most of the mask."""
    padded = np.pad(mask_THW, ((0, 0), (side // 2 + 1, side // 2), (side // 2 + 1, side // 2)))
    sums = padded.cumsum(axis=1, dtype=np.int32).cumsum(axis=2, dtype=np.int32)
    held = sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side] + sums[:, :-side, :-side]
    held = np.where(mask_THW, held, 0).reshape(len(mask_THW), -1)
    best = np.zeros_like(held, dtype=bool)
    best[np.arange(len(held)), held.argmax(axis=1)] = True
    return best.reshape(mask_THW.shape)


def _along_rows(blob_THW: Mask, mask_THW: Mask) -> Mask:
    """Every run of the mask in a row that holds a pixel of the blob."""
    begins = mask_THW.copy()
    begins[..., 1:] &= ~mask_THW[..., :-1]
    run = begins.reshape(-1).cumsum()
    is_held = np.zeros(run[-1] + 1, dtype=bool)
    is_held[run[blob_THW.reshape(-1)]] = True
    return is_held[run].reshape(mask_THW.shape) & mask_THW


def _along_columns(blob_THW: Mask, mask_THW: Mask) -> Mask:
    turned = _along_rows(blob_THW.swapaxes(1, 2), np.ascontiguousarray(mask_THW.swapaxes(1, 2)))
    return turned.swapaxes(1, 2)


def _shrunk(mask_THW: Mask, *, times: int) -> Mask:
    """Without the pixels that are `times` steps or less from the outside."""
    for _ in range(times):
        padded = np.pad(mask_THW, ((0, 0), (1, 1), (1, 1)))
        mask_THW = (
            mask_THW & padded[:, 2:, 1:-1] & padded[:, :-2, 1:-1] & padded[:, 1:-1, 2:] & padded[:, 1:-1, :-2]
        )
    return mask_THW


def _grown(mask_THW: Mask) -> Mask:
    return ~_shrunk(np.pad(~mask_THW, ((0, 0), (2, 2), (2, 2)), constant_values=True), times=2)[:, 2:-2, 2:-2]


def _box(mask_HW: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _count(mask_THW: Mask) -> NDArray[np.int64]:
    return np.count_nonzero(mask_THW, axis=(1, 2))


def _apart(levels: Floats, colour_C: Floats) -> Floats:
    """The largest difference of a channel; spelled out, since a maximum over so short an axis is slow."""
    red, green, blue = np.moveaxis(np.abs(levels - colour_C.astype(levels.dtype)), -1, 0)
    return np.maximum(np.maximum(red, green), blue)


def _hsv(levels: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Hue in degrees -60..300, saturation 0..1 and value 0..255 of colours 0..255 in the last axis."""
    red, green, blue = np.moveaxis(levels.astype(np.float32), -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.where(spread == 0, 1, spread)
    hue = np.select(
        [value == red, value == green],
        [(green - blue) / divisor, 2 + (blue - red) / divisor],
        4 + (red - green) / divisor,
    )
    return 60 * hue, spread / np.where(value == 0, 1, value), value


def _between(hue: Floats | float, limits: tuple[float, float]) -> Mask:
    """Whether a hue lies in a range that may begin below 0 or end above 300."""
    low, high = limits
    return np.asarray((hue - low) % 360 <= high - low)
