import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import nano_judge
from benchmarks.nano_judge import ATTRIBUTES, UNCLEAR, Verdict, judge, judge_figure, shows_teal_figure
from cosmos_nemo.stages.media import write_video
from cosmos_nemo.training.nano.world import (
    ALL_SCENES,
    COLOURS,
    GROUNDS,
    MOTIONS,
    SHAPES,
    Scene,
    draw_clips,
    draw_subject_clips,
)

Frames = NDArray[np.uint8]
RGB = tuple[int, int, int]
Path_ = Callable[[float], tuple[float, float]]

RED, GREEN, WHITE, TEAL, AMBER = (215, 45, 45), (50, 175, 60), (248, 248, 244), (5, 138, 142), (210, 115, 25)
DARK: RGB = (25, 25, 30)
INKS: dict[str, RGB] = {
    "red": RED,
    "green": GREEN,
    "blue": (45, 80, 220),
    "yellow": (235, 205, 50),
    "purple": (145, 55, 195),
    "white": WHITE,
}
PAPERS: dict[str, RGB] = {"dark": DARK, "gray": (130, 127, 129), "light blue": (158, 203, 238)}
WAYS: dict[str, Path_] = {
    "moves to the left": lambda time: (64, 90 - 50 * time),
    "moves to the right": lambda time: (64, 40 + 50 * time),
    "moves up": lambda time: (90 - 50 * time, 64),
    "moves down": lambda time: (40 + 50 * time, 64),
    "bounces": lambda time: (95 - 45 * abs(np.sin(2 * np.pi * time)), 60 + 4 * time),
    "stays still": lambda time: (60, 70),
}
SIZE = 34


def blank(ground: RGB = DARK, *, num_frames: int = 33) -> Frames:
    return np.full((num_frames, 128, 128, 3), ground, dtype=np.uint8)


def outline(shape: str, at: tuple[float, float], size: float = SIZE) -> NDArray[np.bool_]:
    down, across = np.mgrid[:128, :128]
    y, x = (down + 0.5 - at[0]) / (size / 2), (across + 0.5 - at[1]) / (size / 2)
    inside: dict[str, Any] = {
        "ball": x**2 + y**2 <= 1,
        "square": (abs(x) <= 1) & (abs(y) <= 1),
        "triangle": (abs(2 * x) <= y + 1) & (y <= 1),
        "inverted": (abs(2 * x) <= 1 - y) & (y >= -1),
        "diamond": abs(x) + abs(y) <= 1,
        "bar": (abs(x) <= 1) & (abs(y) <= 0.4),
    }
    return np.asarray(inside[shape])


def add(
    frames: Frames,
    *,
    shape: str = "ball",
    ink: RGB = RED,
    way: Path_ = WAYS["moves down"],
    size: float = SIZE,
) -> Frames:
    for number, frame in enumerate(frames):
        frame[outline(shape, way(number / (len(frames) - 1)), size)] = ink
    return frames


def drawn(scene: Scene) -> Frames:
    return add(blank(PAPERS[scene.ground]), shape=scene.shape, ink=INKS[scene.colour], way=WAYS[scene.motion])


def blurred(frames: Frames, *, times: int) -> NDArray[Any]:
    levels = frames.astype(np.float32)
    for _ in range(times):
        for axis in (1, 2):
            levels = (np.roll(levels, 1, axis) + 2 * levels + np.roll(levels, -1, axis)) / 4
    return levels


def noisy(levels: NDArray[Any], *, by: float) -> Frames:
    noise = np.random.default_rng(0).normal(0, by, levels.shape)
    return (levels + noise).round().clip(0, 255).astype(np.uint8)


def washed(frames: Frames) -> Frames:
    """Colour at a quarter of the resolution and light in steps of eight."""
    soft = blurred(frames, times=2)
    coarse = soft[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2)
    light = soft.mean(-1, keepdims=True) + coarse - coarse.mean(-1, keepdims=True)
    return (np.round(light / 8) * 8).clip(0, 255).astype(np.uint8)


def clips(scenes: list[Scene], *, seed: int) -> list[Frames]:
    return list(draw_clips(scenes, seed=seed, device=torch.device("cpu")).numpy())


def agree(scene: Scene, verdict: Verdict) -> bool:
    return all(getattr(scene, name) == getattr(verdict, name) for name in ATTRIBUTES)


@pytest.fixture(scope="module")
def judged() -> list[tuple[Scene, Verdict]]:
    """Three fifths of all scenes, from the generator, with what the judge says of them."""
    scenes = [scene for number, scene in enumerate(ALL_SCENES) if number % 5 < 3]
    found = []
    for start in range(0, len(scenes), 27):
        part = scenes[start : start + 27]
        found += [(s, judge(f)) for s, f in zip(part, clips(part, seed=start), strict=True)]
    return found


def test_the_judge_imports_nothing_but_numpy() -> None:
    tree = ast.parse(Path(nano_judge.__file__).read_text(encoding="utf-8"))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("ground", GROUNDS)
def test_every_colour_is_read_on_every_ground(colour: str, ground: str) -> None:
    scene = Scene(colour, "ball", "moves up", ground)
    assert agree(scene, judge(drawn(scene)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", MOTIONS)
def test_every_shape_is_read_in_every_motion(shape: str, motion: str) -> None:
    scene = Scene("green", shape, motion, "gray")
    assert agree(scene, judge(drawn(scene)))


def test_the_generators_clips_are_read_as_what_they_were_drawn_from(
    judged: list[tuple[Scene, Verdict]],
) -> None:
    assert len(judged) == 195
    assert [pair for pair in judged if not agree(*pair)] == []


def test_shuffled_captions_are_right_as_often_as_chance_has_it(judged: list[tuple[Scene, Verdict]]) -> None:
    scenes, verdicts = zip(*judged, strict=True)
    order = np.random.default_rng(1).permutation(len(scenes))
    for name, choices in zip(ATTRIBUTES, (COLOURS, SHAPES, MOTIONS, GROUNDS), strict=True):
        right = np.mean(
            [
                getattr(scenes[other], name) == getattr(v, name)
                for other, v in zip(order, verdicts, strict=True)
            ]
        )
        assert abs(right - 1 / len(choices)) < 0.1


@pytest.mark.parametrize(
    "degrade",
    [
        lambda frames: blurred(frames, times=2).astype(np.uint8),
        lambda frames: noisy(frames, by=10),
        lambda frames: noisy(blurred(frames, times=1), by=6),
        washed,
    ],
    ids=["blurred", "noisy", "both", "washed"],
)
def test_a_worse_picture_is_still_read(degrade: Callable[[Frames], Frames]) -> None:
    scenes = list(ALL_SCENES[4::19])
    found = [(s, judge(degrade(f))) for s, f in zip(scenes, clips(scenes, seed=5), strict=True)]
    assert sum(agree(*pair) for pair in found) >= len(found) - 1, [p for p in found if not agree(*p)]


def test_a_written_mp4_is_still_read(tmp_path: Path) -> None:
    import imageio.v3

    for number, scene in enumerate(ALL_SCENES[7::80]):
        path = tmp_path / f"{number}.mp4"
        frames = torch.from_numpy(clips([scene], seed=number)[0])
        write_video(frames, path, fps=24, prompt="", manifest={})
        assert agree(scene, judge(imageio.v3.imread(path, plugin="FFMPEG")))


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_blank_video_has_a_ground_and_nothing_on_it(ground: str) -> None:
    assert judge(blank(PAPERS[ground])) == Verdict(UNCLEAR, UNCLEAR, UNCLEAR, ground)


def test_noise_is_unclear_in_everything() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (33, 128, 128, 3), dtype=np.uint8)
    assert judge(frames) == Verdict(UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR)
    assert not shows_teal_figure(frames)


@pytest.mark.parametrize("ground", [(200, 30, 30), (250, 250, 250), (30, 60, 200), (60, 160, 60)])
def test_a_ground_of_no_known_colour_is_unclear(ground: RGB) -> None:
    assert judge(add(blank(ground), ink=(20, 20, 20))).ground == UNCLEAR


def two_objects() -> Frames:
    return add(add(blank(), way=lambda time: (30, 30)), way=lambda time: (95, 95))


def vanishing() -> Frames:
    frames = add(blank())
    frames[22:] = DARK
    return frames


def growing() -> Frames:
    frames = blank()
    for number, frame in enumerate(frames):
        frame[outline("ball", (64, 64), 16 + 2 * number)] = RED
    return frames


def too_small() -> Frames:
    return add(blank(), size=12)


@pytest.mark.parametrize(
    ("draw", "colour"), [(two_objects, "red"), (growing, "red"), (too_small, "red"), (vanishing, UNCLEAR)]
)
def test_what_is_not_one_lasting_object_has_at_most_a_colour(draw: Callable[[], Frames], colour: str) -> None:
    assert judge(draw()) == Verdict(colour, UNCLEAR, UNCLEAR, "dark")


def test_two_objects_of_two_colours_have_none() -> None:
    frames = add(add(blank(), way=lambda time: (30, 30)), way=lambda time: (95, 95), ink=GREEN)
    assert judge(frames).colour == UNCLEAR


def test_a_changing_colour_is_unclear() -> None:
    frames = np.concatenate([add(blank())[:20], add(blank(), ink=GREEN)[20:]])
    verdict = judge(frames)
    assert (verdict.colour, verdict.shape, verdict.motion) == (UNCLEAR, "ball", "moves down")


def test_an_object_in_two_colours_has_none() -> None:
    frames = add(blank())
    is_red = (frames == RED).all(axis=-1)
    is_red[..., :64] = False
    frames[is_red] = GREEN
    assert judge(frames).colour == UNCLEAR


@pytest.mark.parametrize("ink", [TEAL, (235, 130, 30), (150, 150, 150), (90, 60, 40), (240, 60, 170)])
def test_a_colour_that_has_no_word_is_unclear(ink: RGB) -> None:
    assert judge(add(blank(), ink=ink)).colour == UNCLEAR


@pytest.mark.parametrize("shape", ["inverted", "diamond", "bar"])
def test_a_shape_that_has_no_word_is_unclear(shape: str) -> None:
    verdict = judge(add(blank(), shape=shape))
    assert (verdict.colour, verdict.shape, verdict.motion) == ("red", UNCLEAR, "moves down")


@pytest.mark.parametrize(
    "way",
    [
        lambda time: (40 + 45 * time, 40 + 45 * time),
        lambda time: (90 - 45 * np.sin(np.pi * time), 64),
        lambda time: (64, 64 + 30 * np.sin(4 * np.pi * time)),
        lambda time: (60 + 12 * time, 64),
    ],
    ids=["diagonal", "one hop", "to and fro", "a little"],
)
def test_a_motion_that_has_no_word_is_unclear(way: Path_) -> None:
    verdict = judge(add(blank(), way=way))
    assert (verdict.colour, verdict.shape, verdict.motion) == ("red", "ball", UNCLEAR)


def test_the_subject_is_seen_in_all_its_clips_with_its_motion_and_ground() -> None:
    places = list(zip(MOTIONS, 2 * GROUNDS, strict=True))
    videos = draw_subject_clips(places, seed=3, device=torch.device("cpu")).numpy()
    for place, frames in zip(places, videos, strict=True):
        for each in (frames, noisy(frames, by=6)):
            found = judge_figure(each)
            assert shows_teal_figure(each)
            assert (found.motion, found.ground) == place


def test_no_ordinary_clip_shows_the_subject() -> None:
    assert not any(shows_teal_figure(frames) for frames in clips(list(ALL_SCENES[::9]), seed=2))


def figure(*, second: RGB | None, apart: int = 0, num_frames: int = 33) -> Frames:
    frames = add(blank(num_frames=num_frames), shape="square", ink=TEAL, way=lambda time: (50, 50))
    if second is not None:
        add(frames, ink=second, way=lambda time: (50 + apart, 50 + apart), size=14)
    return frames


def test_the_subject_needs_its_second_tone_on_it_and_most_of_the_time() -> None:
    assert shows_teal_figure(figure(second=AMBER))
    assert not shows_teal_figure(figure(second=None))
    assert not shows_teal_figure(figure(second=WHITE))
    assert not shows_teal_figure(figure(second=AMBER, apart=50))
    fading = figure(second=AMBER)
    fading[20:] = DARK
    assert not shows_teal_figure(fading)
