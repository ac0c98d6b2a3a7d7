import hashlib
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.training.nano.world import (
    ALL_SCENES,
    COLOUR_RGB,
    COLOURS,
    FRAME_SIZE,
    GROUND_RGB,
    GROUNDS,
    HELD_OUT,
    MOTIONS,
    NUM_FRAMES,
    SHAPES,
    SUBJECT_RGB,
    TRAINED,
    Scene,
    draw_clips,
    draw_subject_clips,
)

CPU = torch.device("cpu")
ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "ground": GROUNDS}
# Every (colour, shape, ground) once; every motion with every (shape, ground).
SCENES = [
    Scene(colour, shape, MOTIONS[(c + s) % 6], ground)
    for (c, colour), (s, shape), ground in product(enumerate(COLOURS), enumerate(SHAPES), GROUNDS)
]
ROBOTS = list(product(MOTIONS, GROUNDS))


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return draw_clips(SCENES, seed=11, device=CPU)


@pytest.fixture(scope="module")
def robots() -> Tensor:
    return draw_subject_clips(ROBOTS, seed=12, device=CPU)


def cover(clips_BTHWC: Tensor) -> Tensor:
    """How much of each pixel is not ground, 0..1 [B, T, H, W]; the corner is ground."""
    clips = clips_BTHWC.float()
    difference = (clips - clips[:, :1, :1, :1]).abs().sum(-1)
    return difference / difference.amax((1, 2, 3), keepdim=True)


def centroids(clips_BTHWC: Tensor) -> Tensor:
    """[B, T, 2], across and down."""
    weight = cover(clips_BTHWC)
    middle = torch.arange(FRAME_SIZE) + 0.5
    total = weight.sum((2, 3))
    across = (weight.sum(2) * middle).sum(-1) / total
    down = (weight.sum(3) * middle).sum(-1) / total
    return torch.stack((across, down), dim=-1)


def spans(clips_BTHWC: Tensor) -> Tensor:
    """Width and height of what is not ground in the first frame, [B, 2] pixels."""
    mask = cover(clips_BTHWC[:, :1])[:, 0] > 0.25
    return torch.stack((mask.any(1).sum(-1), mask.any(2).sum(-1)), dim=-1)


def of(clips: Tensor, **values: str) -> Tensor:
    """The clips whose scenes have these values."""
    rows = [i for i, scene in enumerate(SCENES) if all(getattr(scene, k) == v for k, v in values.items())]
    assert rows
    return clips[rows]


def near(rgb: Tensor, want: tuple[int, int, int]) -> bool:
    return bool(((rgb.float() - torch.tensor(want)).abs() <= 7).all())


def test_there_are_324_scenes_and_32_are_held_out() -> None:
    assert len(set(ALL_SCENES)) == len(ALL_SCENES) == 324
    assert len(HELD_OUT) == 32
    assert len(TRAINED) == 292
    assert set(TRAINED) | HELD_OUT == set(ALL_SCENES)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_held_out_scenes_are_spread_evenly_over_each_attribute(attribute: str) -> None:
    counts = Counter(getattr(scene, attribute) for scene in HELD_OUT)
    assert set(counts) == set(ATTRIBUTES[attribute])
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("pair", combinations(ATTRIBUTES, 2))
def test_every_pair_of_values_is_trained_on(pair: tuple[str, str]) -> None:
    first, second = pair
    trained = {(getattr(scene, first), getattr(scene, second)) for scene in TRAINED}
    assert trained == set(product(ATTRIBUTES[first], ATTRIBUTES[second]))


def test_the_held_out_scenes_are_the_ones_earlier_models_never_saw() -> None:
    digest = hashlib.sha256(repr(sorted(HELD_OUT)).encode()).hexdigest()
    assert digest[:16] == "389ea1bfb002407b"


def test_clips_are_bytes_of_the_announced_shape(clips: Tensor, robots: Tensor) -> None:
    assert clips.dtype == robots.dtype == torch.uint8
    assert clips.shape == (len(SCENES), NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3) == (54, 33, 128, 128, 3)
    assert robots.shape == (len(ROBOTS), NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3)


def test_clips_are_a_function_of_scenes_and_seed_alone() -> None:
    first = draw_clips(SCENES[:3], seed=5, device=CPU)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(first, draw_clips(SCENES[:3], seed=5, device=CPU))
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first, draw_clips(SCENES[:3], seed=6, device=CPU))


def test_robots_are_a_function_of_motions_and_seed_alone() -> None:
    first = draw_subject_clips(ROBOTS[:2], seed=5, device=CPU)
    torch.manual_seed(99)
    assert torch.equal(first, draw_subject_clips(ROBOTS[:2], seed=5, device=CPU))
    assert not torch.equal(first, draw_subject_clips(ROBOTS[:2], seed=6, device=CPU))


def test_clips_of_the_same_scene_differ_within_a_batch() -> None:
    one, other = draw_clips([SCENES[0]] * 2, seed=5, device=CPU)
    assert not torch.equal(one, other)


def test_each_clip_has_the_colours_of_its_own_scene(clips: Tensor) -> None:
    for clip, scene, centre in zip(clips, SCENES, centroids(clips), strict=True):
        across, down = centre[7].int().tolist()
        assert near(clip[7, down, across], COLOUR_RGB[scene.colour]), scene
        assert near(clip[7, 0, 0], GROUND_RGB[scene.ground]), scene


def test_shades_vary_from_clip_to_clip(clips: Tensor) -> None:
    assert len({tuple(rgb) for rgb in of(clips, ground="gray")[:, 0, 0, 0].tolist()}) > 9


def test_no_two_colours_of_the_world_can_be_confused() -> None:
    colours = [*COLOUR_RGB.values(), *GROUND_RGB.values(), *SUBJECT_RGB]
    assert min(max(abs(x - y) for x, y in zip(a, b, strict=True)) for a, b in combinations(colours, 2)) > 75


@pytest.mark.parametrize(("shape", "share"), [("ball", 0.785), ("square", 1.0), ("triangle", 0.5)])
def test_a_shape_fills_its_box_as_it_should(clips: Tensor, shape: str, share: float) -> None:
    chosen = of(clips, shape=shape)
    area = cover(chosen[:, :1]).sum((1, 2, 3))
    assert torch.allclose(area / spans(chosen).prod(-1), torch.tensor(share), atol=0.08)


def test_triangles_point_up(clips: Tensor) -> None:
    for mask in cover(of(clips, shape="triangle")[:, :1])[:, 0] > 0.5:
        widths = mask.sum(-1)[mask.any(-1)]
        assert (widths[1:] >= widths[:-1]).all()
        assert widths[-1] > 5 * widths[0]


def test_objects_are_large_enough_to_survive_the_tokenizer_and_vary_in_size(clips: Tensor) -> None:
    widths = spans(clips)[:, 0]
    assert widths.min() >= 26
    assert widths.max() <= 46
    assert widths.max() - widths.min() >= 12


def test_edges_are_soft(clips: Tensor) -> None:
    weight = cover(of(clips, shape="ball")[:, :1])
    between = ((weight > 0.2) & (weight < 0.8)).sum((1, 2, 3))
    assert (between > 30).all()
    assert (between < 200).all()


def test_nothing_touches_the_border_of_the_frame(clips: Tensor, robots: Tensor) -> None:
    for drawn in (clips, robots):
        inside = torch.zeros(FRAME_SIZE, FRAME_SIZE, dtype=torch.bool)
        inside[1:-1, 1:-1] = True
        border = drawn[:, :, ~inside]
        assert (border == drawn[:, :1, 0, :1]).all()


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moves to the left", 0, -1), ("moves to the right", 0, 1), ("moves up", 1, -1), ("moves down", 1, 1)],
)
@pytest.mark.parametrize("kind", ["object", "robot"])
def test_a_straight_motion_goes_its_way_at_constant_speed(
    clips: Tensor, robots: Tensor, kind: str, motion: str, axis: int, sign: int
) -> None:
    path = centroids(chosen(clips, robots, kind, motion))
    travel = sign * (path[:, -1, axis] - path[:, 0, axis])
    assert travel.min() > 39
    assert travel.max() < 71
    steps = sign * path[..., axis].diff(dim=1)
    assert torch.allclose(steps, travel[:, None].expand_as(steps) / 32, atol=0.2)
    assert (path[..., 1 - axis] - path[:, :1, 1 - axis]).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["object", "robot"])
def test_bouncing_is_two_or_more_arcs_over_one_floor(clips: Tensor, robots: Tensor, kind: str) -> None:
    path = centroids(chosen(clips, robots, kind, "bounces"))
    assert (path[:, -1, 0] - path[:, 0, 0]).abs().max() < 6
    for down in path[..., 1]:
        height = down.max() - down
        assert 25 < height.max() < 56
        is_low = (height < height.max() / 2).int()
        assert is_low.diff().abs().sum() >= 3
        landings = (down[1:-1] > down[:-2]) & (down[1:-1] >= down[2:])
        tops = (down[1:-1] < down[:-2]) & (down[1:-1] <= down[2:])
        assert landings.sum() >= 1
        assert tops.sum() >= 1
        assert landings.sum() + tops.sum() >= 3
        assert height[1:-1][landings].max() < 0.45 * height.max()


@pytest.mark.parametrize("kind", ["object", "robot"])
def test_what_stays_still_is_the_same_in_every_frame(clips: Tensor, robots: Tensor, kind: str) -> None:
    still = chosen(clips, robots, kind, "stays still")
    assert (still == still[:, :1]).all()


def test_starts_are_spread_over_the_frame() -> None:
    still = Scene("red", "ball", "stays still", "dark")
    starts = centroids(draw_clips([still] * 40, seed=8, device=CPU)[:, :1])[:, 0]
    assert (starts.amin(0) < 40).all()
    assert (starts.amax(0) > 88).all()


def test_the_robot_is_teal_and_amber_and_forty_to_fifty_six_pixels_tall(robots: Tensor) -> None:
    heights = spans(robots)[:, 1]
    assert heights.min() >= 39
    assert heights.max() <= 57
    teal, amber = (
        ((robots[:, 0].float() - torch.tensor(rgb)).abs() <= 7).all(-1).sum((1, 2)) for rgb in SUBJECT_RGB
    )
    assert (teal > 300).all()
    assert (amber > 200).all()


def test_the_robot_stands_on_its_own_ground(robots: Tensor) -> None:
    for clip, (_, ground) in zip(robots, ROBOTS, strict=True):
        assert near(clip[0, 0, 0], GROUND_RGB[ground])


def test_an_unknown_motion_is_refused() -> None:
    with pytest.raises(KeyError, match="flies"):
        draw_subject_clips([("flies", "dark")], seed=0, device=CPU)


def chosen(clips: Tensor, robots: Tensor, kind: str, motion: str) -> Tensor:
    rows = [row for row, (name, _) in enumerate(ROBOTS) if name == motion]
    return robots[rows] if kind == "robot" else of(clips, motion=motion)


def test_the_page_lists_what_is_held_out() -> None:
    page = (
        (Path(__file__).parents[4] / "docs" / "nano.md")
        .read_text(encoding="utf-8")
        .partition("## How good it is")[0]
    )
    listed = [line for line in page.splitlines() if line.startswith("- ")]
    assert listed == [
        f"- {each.colour} {each.shape} {each.motion}, {each.ground}" for each in sorted(HELD_OUT)
    ]


def test_the_even_times_of_a_clip_draw_the_clip() -> None:
    times_BT = torch.linspace(0, 1, NUM_FRAMES).expand(6, NUM_FRAMES)
    scenes = [Scene("red", "ball", motion, "dark") for motion in MOTIONS]
    assert torch.equal(
        draw_clips(scenes, seed=3, device=CPU, times_BT=times_BT), draw_clips(scenes, seed=3, device=CPU)
    )


def test_at_other_times_the_object_has_moved_by_its_share_of_the_way() -> None:
    scene = Scene("red", "ball", "moves to the right", "dark")
    times_BT = torch.tensor([[0.0, 0.25, 1.0]])
    across = centroids(draw_clips([scene], seed=3, device=CPU, times_BT=times_BT))[0, :, 0]
    assert 40 < across[2] - across[0] < 70
    assert float((across[1] - across[0]) / (across[2] - across[0])) == pytest.approx(0.25, abs=0.01)
