"""Draws the input files that the documented commands name: pictures of simple shapes, prompts, batch lists.

Run it with Pillow, imageio and imageio-ffmpeg: `python assets/make_assets.py`. It writes beside itself.
"""

import json
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).parent
CANVAS = (1280, 704)
OVERSAMPLING = 2

Color = tuple[int, int, int]
Scene = Callable[[float], Image.Image]


class Pen:
    """Draws on a canvas of 1280 x 704 units, oversampled so that edges come out smooth."""

    def __init__(self, background: Color) -> None:
        self.image = Image.new("RGB", (CANVAS[0] * OVERSAMPLING, CANVAS[1] * OVERSAMPLING), background)
        self._draw = ImageDraw.Draw(self.image)

    def box(
        self, left: float, top: float, width: float, height: float, color: Color, radius: float = 0
    ) -> None:
        edges = [value * OVERSAMPLING for value in (left, top, left + width, top + height)]
        self._draw.rounded_rectangle(edges, radius * OVERSAMPLING, fill=color)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        edges = [value * OVERSAMPLING for value in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.ellipse(edges, fill=color)

    def polygon(self, corners: list[tuple[float, float]], color: Color) -> None:
        self._draw.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in corners], fill=color)


def bus_terminal(time: float) -> Image.Image:
    """Night: three double-decker buses from the front, under lamps; the middle one comes closer."""
    pen = Pen((14, 17, 32))
    pen.box(0, 470, 1280, 234, (38, 40, 50))
    for x in range(120, 1280, 260):
        pen.box(x - 4, 60, 8, 410, (52, 54, 66))
        pen.disc(x, 60, 20, (255, 226, 160))
        pen.disc(x, 60, 11, (255, 246, 220))
    for x in range(60, 1280, 190):
        pen.box(x, 500, 70, 8, (90, 92, 100))
    _bus(pen, 300, 500, 1.0, (28, 92, 120))
    _bus(pen, 980, 500, 1.0, (120, 40, 48))
    _bus(pen, 640, 520 + 90 * time, 1.1 + 0.25 * time, (214, 164, 36))
    return pen.image


def _bus(pen: Pen, x: float, ground: float, scale: float, color: Color) -> None:
    width, height = 210 * scale, 330 * scale
    left, top = x - width / 2, ground - height
    pen.box(left, top, width, height, color, radius=18 * scale)
    pen.box(left + 16 * scale, top + 22 * scale, width - 32 * scale, 92 * scale, (58, 74, 96), 8 * scale)
    pen.box(left + 50 * scale, top + 124 * scale, width - 100 * scale, 26 * scale, (20, 20, 20), 4 * scale)
    pen.box(left + 62 * scale, top + 131 * scale, width - 124 * scale, 12 * scale, (250, 150, 40))
    pen.box(left + 16 * scale, top + 160 * scale, width - 32 * scale, 100 * scale, (72, 90, 112), 8 * scale)
    for side in (left + 34 * scale, left + width - 34 * scale):
        pen.disc(side, ground - 40 * scale, 18 * scale, (255, 250, 220))
        pen.box(side - 20 * scale, ground - 4 * scale, 40 * scale, 22 * scale, (16, 16, 18), 5 * scale)


def red_car(time: float) -> Image.Image:
    """Day: a red car drives from left to right on a road, past hills."""
    pen = Pen((150, 200, 236))
    pen.disc(1080, 130, 60, (255, 238, 150))
    pen.polygon([(0, 470), (260, 250), (560, 470)], (96, 142, 104))
    pen.polygon([(380, 470), (800, 210), (1280, 470)], (78, 124, 92))
    pen.box(0, 460, 1280, 60, (122, 168, 96))
    pen.box(0, 520, 1280, 184, (84, 86, 92))
    for x in range(40, 1280, 200):
        pen.box(x, 606, 110, 12, (232, 226, 190))
    x = 180 + 760 * time
    pen.box(x, 500, 300, 76, (196, 40, 44), 22)
    pen.polygon([(x + 62, 504), (x + 104, 440), (x + 206, 440), (x + 252, 504)], (160, 30, 36))
    pen.polygon([(x + 82, 502), (x + 112, 454), (x + 198, 454), (x + 228, 502)], (186, 220, 238))
    for wheel in (x + 70, x + 230):
        pen.disc(wheel, 576, 36, (26, 26, 30))
        pen.disc(wheel, 576, 16, (150, 152, 158))
    return pen.image


def blue_ball(time: float) -> Image.Image:
    """Indoors: a blue ball rolls over a wooden table and passes behind a green cube."""
    pen = Pen((226, 218, 204))
    pen.box(0, 430, 1280, 274, (164, 112, 66))
    for y in (500, 570, 640):
        pen.box(0, y, 1280, 4, (140, 92, 52))
    x = 140 + 900 * time
    pen.box(x - 80, 512, 160, 16, (128, 84, 48), 8)
    pen.disc(x, 430, 90, (40, 84, 190))
    pen.disc(x - 30, 398, 22, (150, 184, 240))
    pen.box(700, 380, 200, 200, (58, 142, 84), 6)
    pen.polygon([(700, 384), (760, 336), (950, 336), (896, 384)], (92, 182, 116))
    pen.polygon([(896, 384), (950, 336), (950, 530), (896, 578)], (40, 108, 62))
    return pen.image


def robot_arm(time: float) -> Image.Image:
    """A grey robot arm with an orange gripper swings over a conveyor belt that carries boxes."""
    pen = Pen((196, 204, 210))
    pen.box(0, 0, 1280, 120, (176, 184, 192))
    pen.box(0, 540, 1280, 70, (58, 62, 70))
    for index in range(8):
        x = (index * 200 + 320 * time) % 1600 - 160
        pen.box(x, 450, 110, 90, (188, 142, 88), 4)
        pen.box(x + 48, 450, 14, 90, (214, 178, 128))
    pen.box(596, 120, 88, 60, (92, 98, 108), 8)
    elbow = (640 + 190 * np.sin(1.6 * time - 0.8), 180 + 120)
    hand = (elbow[0] + 120 * np.cos(2.0 * time + 0.6), elbow[1] + 90)
    _limb(pen, (640, 180), elbow, 52, (112, 120, 132))
    _limb(pen, elbow, hand, 40, (132, 140, 152))
    pen.disc(*elbow, 34, (74, 80, 90))
    pen.box(hand[0] - 44, hand[1] - 8, 88, 26, (230, 126, 40), 6)
    for side in (-44, 26):
        pen.box(hand[0] + side, hand[1] + 10, 18, 46, (230, 126, 40), 4)
    return pen.image


def _limb(pen: Pen, start: tuple[float, float], end: tuple[float, float], width: float, color: Color) -> None:
    along = np.subtract(end, start)
    across = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
    corners = [start + across, end + across, end - across, start - across]
    pen.polygon([(x, y) for x, y in corners], color)
    pen.disc(*start, width / 2, color)
    pen.disc(*end, width / 2, color)


def picture(scene: Scene, time: float, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]; the canvas is cut to the wanted shape around its middle, never stretched."""
    image = scene(time)
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def write_image(path: str, scene: Scene, *, time: float = 0.0) -> None:
    frame = picture(scene, time, *CANVAS)
    imageio.imwrite(_made(path), frame, quality=90)


def write_video(path: str, scene: Scene, *, num_frames: int, fps: int, width: int, height: int) -> None:
    frames = [picture(scene, i / (num_frames - 1), width, height) for i in range(num_frames)]
    imageio.imwrite(
        _made(path),
        np.stack(frames),
        fps=fps,
        codec="libx264",
        quality=7,
        macro_block_size=16,
        pixelformat="yuv420p",
    )


def write_lines(path: str, records: list[dict[str, str]]) -> None:
    _made(path).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _made(path: str) -> Path:
    target = HERE / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


CAR = {
    "prompt": "A small red car drives along an empty road from left to right, past green hills and a low "
    "sun. The camera stands still.",
    "visual_input": "assets/diffusion/video2world_input0.mp4",
}
BALL = {
    "prompt": "A blue ball rolls over a wooden table, behind a green cube and out again. Soft daylight, "
    "the camera stands still.",
    "visual_input": "assets/diffusion/video2world_input1.mp4",
}
TERMINAL_PROMPT = (
    "A bus terminal at night. Three double-decker buses stand side by side under a row of warm lamps: a "
    "blue-green one on the left, a yellow one in the middle and a dark red one on the right, all with "
    "their headlights on. The yellow bus slowly rolls forward out of the row, its headlights growing "
    "brighter, while the other two stay where they are. The camera stands still.\n"
)


def main() -> None:
    write_image("video2world/input0.jpg", bus_terminal)
    _made("video2world/input0.txt").write_text(TERMINAL_PROMPT, encoding="utf-8")
    write_image("diffusion/video2world_input0.jpg", red_car)
    write_video("diffusion/video2world_input0.mp4", red_car, num_frames=33, fps=24, width=1280, height=704)
    write_video("diffusion/video2world_input1.mp4", blue_ball, num_frames=33, fps=24, width=1280, height=704)
    write_video("diffusion/interpolation_example.mp4", blue_ball, num_frames=9, fps=6, width=1280, height=704)
    write_video("autoregressive/input.mp4", robot_arm, num_frames=33, fps=25, width=1024, height=640)
    # One document passes this list to the text door (it reads `prompt`), another to the door that continues
    # videos (it reads `visual_input`): every line has both.
    write_lines("diffusion/batch_inputs/text2world.jsonl", [CAR, BALL])
    write_lines(
        "diffusion/batch_inputs/video2world_ps.jsonl",
        [{"visual_input": r["visual_input"]} for r in (CAR, BALL)],
    )
    write_lines("diffusion/batch_inputs/video2world_wo_ps.jsonl", [CAR, BALL])


if __name__ == "__main__":
    main()
