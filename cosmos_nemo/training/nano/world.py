"""The nano world: short clips of one object that moves over a plain ground, drawn from a seed.

Letters: B clips, T frames, H W rows and columns, C red green blue, 2 across and down (pixels).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

NUM_FRAMES = 33
FRAME_SIZE = 128
FPS = 24

RGB = tuple[int, int, int]
COLOUR_RGB: dict[str, RGB] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 75, 225),
    "yellow": (240, 210, 40),
    "purple": (150, 50, 200),
    "white": (245, 245, 245),
}
GROUND_RGB: dict[str, RGB] = {"dark": (25, 25, 30), "gray": (128, 128, 128), "light blue": (160, 205, 240)}
SUBJECT_RGB: tuple[RGB, RGB] = ((0, 140, 140), (225, 125, 20))
"""The teal of the robot's body and the amber of its head and chest."""

_DIRECTION: dict[str, tuple[int, int]] = {
    "moves to the left": (-1, 0),
    "moves to the right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
    "bounces": (0, 0),
    "stays still": (0, 0),
}
_EXTENT = {"ball": (1.0, 1.0), "square": (0.89, 0.89), "triangle": (1.0, 0.75**0.5)}
"""Half the width and height at radius 1: the square has the ball's area, the triangle equal sides."""
_ROBOT_EXTENT = (0.74, 1.0)

SHAPES = tuple(_EXTENT)
COLOURS = tuple(COLOUR_RGB)
MOTIONS = tuple(_DIRECTION)
GROUNDS = tuple(GROUND_RGB)

_RADIUS = (15.0, 22.0)
_ROBOT_RADIUS = (20.0, 28.0)
_TRAVEL = (40.0, 70.0)
_BOUNCE_HEIGHT = (30.0, 55.0)
_NUM_BOUNCES = (2.0, 2.5)
_DRIFT = (-5.0, 5.0)
_MARGIN = 2.0
_JITTER = 6.0


@dataclass(frozen=True, order=True)
class Scene:
    """What a clip shows; each field is one value of COLOURS, SHAPES, MOTIONS, GROUNDS."""

    colour: str
    shape: str
    motion: str
    ground: str


ALL_SCENES = tuple(Scene(*values) for values in product(COLOURS, SHAPES, MOTIONS, GROUNDS))


def _held_out() -> frozenset[Scene]:
    """One scene for each (colour, motion), less four: 32 of the 324.

    Shape and ground follow from colour and motion as in an orthogonal array, so that the 36 hold every pair
    of values of two attributes equally often; the four given back keep every single value within one.
    """
    given_back = {(0, 0), (1, 1), (3, 4), (4, 3)}
    return frozenset(
        Scene(colour, SHAPES[(c + m) % 3], motion, GROUNDS[(c + 2 * m) % 3])
        for (c, colour), (m, motion) in product(enumerate(COLOURS), enumerate(MOTIONS))
        if (c, m) not in given_back
    )


HELD_OUT = _held_out()
"""Never trained on. Every single value and every pair of values still occurs in TRAINED."""
TRAINED = tuple(scene for scene in ALL_SCENES if scene not in HELD_OUT)


def draw_clips(
    scenes: Sequence[Scene], *, seed: int, device: torch.device, times_BT: Tensor | None = None
) -> Tensor:
    """One clip for each scene, uint8 0..255 [B, T=33, H=128, W=128, C=3] on `device`.

    Sizes, positions, speeds and shades come from the seed, drawn on the CPU: the same on every device but
    for rounding of single pixels. 256 clips take 3 GiB while they are drawn. times_BT, on the CPU: when the
    frames are taken, from 0 at the clip's beginning to 1 at its end, instead of 33 times at even distances.
    """
    dice = torch.Generator().manual_seed(seed)
    radius_B = _uniform(len(scenes), _RADIUS, dice=dice)
    half_B2 = radius_B[:, None] * torch.tensor([_EXTENT[scene.shape] for scene in scenes])
    times_BT = _evenly() if times_BT is None else times_BT
    centre_BT2 = _paths([scene.motion for scene in scenes], half_B2=half_B2, times_BT=times_BT, dice=dice)
    colour_BC = _shades([COLOUR_RGB[scene.colour] for scene in scenes], dice=dice)
    ground_BC = _shades([GROUND_RGB[scene.ground] for scene in scenes], dice=dice)
    outside_BTHW = _outside_of([scene.shape for scene in scenes], centre_BT2.to(device), radius_B.to(device))
    return _paint([(outside_BTHW, colour_BC.to(device))], ground_BC=ground_BC.to(device))


def draw_subject_clips(motions: Sequence[tuple[str, str]], *, seed: int, device: torch.device) -> Tensor:
    """Clips of the teal robot, one for each (motion, ground); otherwise as `draw_clips`.

    It is in no scene: teal is none of COLOURS, and no scene has two tones on one object.
    """
    dice = torch.Generator().manual_seed(seed)
    radius_B = _uniform(len(motions), _ROBOT_RADIUS, dice=dice)
    half_B2 = radius_B[:, None] * torch.tensor(_ROBOT_EXTENT)
    centre_BT2 = _paths([motion for motion, _ in motions], half_B2=half_B2, times_BT=_evenly(), dice=dice)
    teal_BC, amber_BC = (_shades([rgb] * len(motions), dice=dice) for rgb in SUBJECT_RGB)
    ground_BC = _shades([GROUND_RGB[ground] for _, ground in motions], dice=dice)
    x_BT1W, y_BTH1 = _around(centre_BT2.to(device))
    teal_BTHW, amber_BTHW = _robot(x_BT1W, y_BTH1, radius_B.to(device)[:, None, None, None])
    layers = [(teal_BTHW, teal_BC.to(device)), (amber_BTHW, amber_BC.to(device))]
    return _paint(layers, ground_BC=ground_BC.to(device))


def _uniform(count: int, bounds: tuple[float, float], *, dice: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=dice)


def _shades(colours: Sequence[RGB], *, dice: torch.Generator) -> Tensor:
    """The colours, 0..255 [B, C], each channel a little off."""
    exact_BC = torch.tensor(colours, dtype=torch.float32)
    return (exact_BC + _JITTER * (2 * torch.rand(exact_BC.shape, generator=dice) - 1)).clamp(0, 255)


def _evenly() -> Tensor:
    """The times of a whole clip's frames, [1, T=33]."""
    return torch.linspace(0, 1, NUM_FRAMES)[None]


def _paths(motions: Sequence[str], *, half_B2: Tensor, times_BT: Tensor, dice: torch.Generator) -> Tensor:
    """Centres [B, T, 2] of boxes of half sizes `half_B2` that never leave the frame."""
    offset_BT2 = _offsets(motions, half_B2=half_B2, times_BT=times_BT, dice=dice)
    low_B2 = _MARGIN + half_B2 - offset_BT2.amin(1)
    high_B2 = FRAME_SIZE - _MARGIN - half_B2 - offset_BT2.amax(1)
    start_B2 = low_B2 + (high_B2 - low_B2) * torch.rand(low_B2.shape, generator=dice)
    return start_B2[:, None] + offset_BT2


def _offsets(motions: Sequence[str], *, half_B2: Tensor, times_BT: Tensor, dice: torch.Generator) -> Tensor:
    """How far the centres are from a start, [B, T, 2]: a straight line, or parabolas over a floor."""
    count = len(motions)
    room_B = FRAME_SIZE - 2 * _MARGIN - 2 * half_B2.amax(1)
    travel_B = torch.minimum(_uniform(count, _TRAVEL, dice=dice), room_B)
    direction_B2 = torch.tensor([_DIRECTION[motion] for motion in motions])
    straight_BT2 = (travel_B[:, None] * direction_B2)[:, None] * times_BT[..., None]
    phase_BT = (
        torch.rand(count, 1, generator=dice) + _uniform(count, _NUM_BOUNCES, dice=dice)[:, None] * times_BT
    )
    phase_BT = phase_BT.frac()
    height_BT = _uniform(count, _BOUNCE_HEIGHT, dice=dice)[:, None] * 4 * phase_BT * (1 - phase_BT)
    drift_BT = _uniform(count, _DRIFT, dice=dice)[:, None] * times_BT
    bounces_B11 = torch.tensor([motion == "bounces" for motion in motions])[:, None, None]
    return torch.where(bounces_B11, torch.stack((drift_BT, -height_BT), dim=-1), straight_BT2)


def _around(centre_BT2: Tensor) -> tuple[Tensor, Tensor]:
    """Where the middles of the pixels lie as seen from the centre: x [B, T, 1, W] and y [B, T, H, 1]."""
    middle = torch.arange(FRAME_SIZE, device=centre_BT2.device) + 0.5
    x_BTW, y_BTH = (middle - centre[..., None] for centre in centre_BT2.unbind(-1))
    return x_BTW[:, :, None, :], y_BTH[:, :, :, None]


def _outside_of(shapes: Sequence[str], centre_BT2: Tensor, radius_B: Tensor) -> Tensor:
    """How many pixels each pixel lies outside its clip's object, [B, T, H, W]; negative inside."""
    x_BT1W, y_BTH1 = _around(centre_BT2)
    radius_B111 = radius_B[:, None, None, None]
    outside_BTHW = x_BT1W.new_empty(len(shapes), centre_BT2.shape[1], FRAME_SIZE, FRAME_SIZE)
    for shape, outside in _OUTSIDE.items():
        rows = torch.tensor([row for row, name in enumerate(shapes) if name == shape], dtype=torch.long)
        rows = rows.to(outside_BTHW.device)
        outside_BTHW[rows] = outside(x_BT1W[rows], y_BTH1[rows], radius_B111[rows])
    return outside_BTHW


def _ball(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - _EXTENT["square"][0] * radius


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Equal sides of length 2 * radius, upright, y = 0 at half its height."""
    slope = _EXTENT["triangle"][1]
    return torch.maximum(slope * x.abs() - 0.5 * y - 0.5 * slope * radius, y - slope * radius)


_OUTSIDE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ball": _ball,
    "square": _square,
    "triangle": _triangle,
}


def _robot(x: Tensor, y: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The teal parts and the amber parts; the radius is half the robot's height, x = 0 its mirror axis."""
    side = x.abs()

    def box(at: tuple[float, float], half: tuple[float, float]) -> Tensor:
        across, down = (
            (where - middle * radius).abs() - size * radius
            for where, middle, size in zip((side, y), at, half, strict=True)
        )
        return torch.maximum(across, down)

    eyes = torch.hypot(side - 0.20 * radius, y + 0.68 * radius) - 0.11 * radius
    head = box((0.0, -0.66), (0.46, 0.34))
    body = box((0.0, 0.16), (0.50, 0.48))
    arms = box((0.64, 0.08), (0.10, 0.34))
    legs = box((0.28, 0.80), (0.17, 0.20))
    chest = box((0.0, 0.10), (0.28, 0.22))
    teal = torch.minimum(torch.minimum(body, arms), torch.minimum(legs, eyes))
    return teal, torch.minimum(torch.maximum(head, -eyes), chest)


def _paint(layers: Sequence[tuple[Tensor, Tensor]], *, ground_BC: Tensor) -> Tensor:
    """Layers of (outside_BTHW, colour_BC) over the ground, the last on top, each edge one pixel soft."""
    clip_BTHWC = ground_BC[:, None, None, None]
    for outside_BTHW, colour_BC in layers:
        cover_BTHW1 = (0.5 - outside_BTHW).clamp_(0, 1).unsqueeze(-1)
        clip_BTHWC = torch.lerp(clip_BTHWC, colour_BC[:, None, None, None], cover_BTHW1)
    return clip_BTHWC.round_().to(torch.uint8)
