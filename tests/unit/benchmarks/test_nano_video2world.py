import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from benchmarks import nano_quality, nano_video2world
from benchmarks.nano_generate import Generator
from benchmarks.nano_judge import centres
from benchmarks.nano_video2world import (
    MODELS,
    TURNED,
    Result,
    Start,
    choose_starts,
    goes_on,
    judged,
    main,
    misses,
    rows_of,
    turned_starts,
)
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.tools.standin import write_standin
from cosmos_nemo.training.nano.captions import caption
from cosmos_nemo.training.nano.world import ALL_SCENES, draw_clips
from tests.fakes import CPU


@pytest.fixture(scope="module")
def starts() -> list[Start]:
    return choose_starts(counts=(1, 9), num_seen=30, num_unseen=12, num_turned=0, seed=0)


@pytest.fixture(scope="module")
def true(starts: list[Start]) -> list[Result]:
    """Of a model that makes the clip that the frames were taken from."""
    return [judged(start, start.clip_THWC) for start in starts]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "assets"
    write_standin([CARDS[MODELS[0]]], folder, seed=0, layout="folder")
    return folder


def test_half_of_the_starts_have_nine_frames_and_they_come_last(starts: list[Start]) -> None:
    assert [start.num_given for start in starts] == [1] * 21 + [9] * 21
    assert Counter(start.item.combination for start in starts) == {"trained": 30, "held out": 12}
    assert all(start.clip_THWC.shape == (33, 128, 128, 3) for start in starts)
    again = choose_starts(counts=(1, 9), num_seen=30, num_unseen=12, num_turned=0, seed=0)
    assert all(torch.equal(one.clip_THWC, two.clip_THWC) for one, two in zip(starts, again, strict=True))
    assert len({start.clip_THWC.numpy().tobytes() for start in starts}) == 42


def test_the_worlds_own_clips_are_right_in_everything(true: list[Result]) -> None:
    for name, row in rows_of(true, seed=0).items():
        right = [row[column] for column in ("colour", "shape", "motion", "ground", "goes on", "all")]
        assert ("shuffled" in name) or right == [100] * 6, name


def test_shuffled_rows_are_at_chance(true: list[Result]) -> None:
    row = rows_of(true, seed=0)["trained, shuffled"]
    assert row["videos"] == 30
    assert row["colour"] < 35 and row["motion"] < 35 and row["goes on"] < 20 and row["all"] < 10


def test_a_turned_start_has_room_for_what_its_prompt_says_and_says_another_direction() -> None:
    for start in turned_starts(count=24, seed=0):
        assert start.num_given == 1 and start.item.combination == TURNED
        scene = start.item.scene
        assert start.item.prompt.lower().count(scene.motion.split(" ")[-1]) >= 1
        row, column = centres(start.clip_THWC.numpy())[0]
        room = {
            "moves up": row,
            "moves down": 128 - row,
            "moves to the left": column,
            "moves to the right": 128 - column,
        }[scene.motion]
        assert room >= 60
        frames = judged(start, start.clip_THWC).verdict
        assert frames.motion != scene.motion
        assert (frames.colour, frames.shape, frames.ground) == (scene.colour, scene.shape, scene.ground)


def test_a_model_that_goes_on_as_the_frame_was_going_misses_what_the_prompt_says() -> None:
    results = [judged(start, start.clip_THWC) for start in turned_starts(count=6, seed=0)]
    row = rows_of(results, seed=0)[TURNED]
    assert (row["motion"], row["colour"], row["goes on"]) == (0, 100, 100)


def elsewhere(start: Start) -> Tensor:
    """A clip of the start's scene whose object is far from where the start's is."""
    place = centres(start.clip_THWC[:2].numpy())[0]
    clips = (draw_clips([start.item.scene], seed=seed, device=CPU)[0] for seed in range(20))
    return next(clip for clip in clips if numpy.abs(centres(clip[:2].numpy())[1] - place).max() > 25)


def changed(start: Start, how: str) -> Tensor:
    """The start's own clip, with something wrong after the given frame, or near the end."""
    clip = start.clip_THWC.clone()
    if how == "jumps":
        clip[1:] = elsewhere(start)[1:]
    if how == "jumps late":
        clip[5:] = elsewhere(start)[5:]
    if how == "colour":
        red, _, blue = clip.unbind(-1)
        clip[29:, ..., 0], clip[29:, ..., 2] = blue[29:].clone(), red[29:].clone()
    if how == "shape":
        kept = clip[24:]
        is_ground = (kept.int() - kept[0, 0, 0].int()).abs().amax(-1) < 30
        for frame, outside in zip(kept, is_ground, strict=True):
            rows, columns = (~outside).nonzero().unbind(1)
            inside = frame[rows[len(rows) // 2], columns[len(rows) // 2]].clone()
            frame[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1] = inside
    return clip


@pytest.mark.parametrize(
    ("how", "column"),
    [("jumps", "goes on"), ("jumps late", "goes on"), ("colour", "colour"), ("shape", "shape")],
)
def test_what_changes_after_the_given_frames_is_seen(starts: list[Start], how: str, column: str) -> None:
    scenes = {
        "jumps": {},
        "jumps late": {"motion": "stays still"},
        "colour": {"ground": "gray"},
        "shape": {"shape": "ball"},
    }[how]
    some = [
        start
        for start in starts
        if start.num_given == 1
        and all(getattr(start.item.scene, name) == value for name, value in scenes.items())
        and (how != "colour" or start.item.scene.colour in ("red", "blue"))
    ][:3]
    assert some
    results = [judged(start, changed(start, how)) for start in some]
    found = nano_video2world.row(zip(results, results, strict=True))
    assert found[column] == 0 and found["all"] == 0
    right = [judged(start, start.clip_THWC) for start in some]
    assert nano_video2world.row(zip(right, right, strict=True))[column] == 100


@pytest.mark.parametrize(
    ("motion", "rows", "does"),
    [
        ("moves up", (57.0, 64.0), True),
        ("moves up", (59.0, 60.0), False),
        ("moves up", (50.0, 50.0, 40.0), False),
        ("stays still", (40.0, 40.0), False),
        ("bounces", (68.0, 87.0), True),
        ("bounces", (71.0, 71.0), False),
        ("moves up", (float("nan"), 50.0), False),
    ],
)
def test_an_object_goes_on_without_a_jump(motion: str, rows: tuple[float, ...], does: bool) -> None:
    assert goes_on(motion, (50.0, 50.0), [(row, 50.0) for row in rows]) is does
    assert goes_on(motion, (50.0, 50.0), [(50.0, row) for row in rows]) is does


def test_require_names_what_is_missed_and_what_is_not_there(true: list[Result]) -> None:
    turned = replace(true[0], item=replace(true[0].item, combination=TURNED))
    rows = rows_of([*true, turned], seed=0)
    assert misses(rows, counts=(1, 9)) == []
    assert "no row 'another direction'" in misses(rows_of(true, seed=0), counts=(1, 9))[0]
    [missed] = misses(
        rows | {"trained, 9 frames": rows["trained, 9 frames"] | {"shape": 97.9}}, counts=(1, 9)
    )
    assert missed == "shape: 97.9 % (trained, 9 frames), 98 % required"
    assert (
        misses(rows | {"held out, 1 frame": rows["held out, 1 frame"] | {"motion": 90.0}}, counts=(1, 9))
        == []
    )
    assert misses(rows | {TURNED: rows[TURNED] | {"motion": 90.0}}, counts=(1, 9)) != []


def as_prompted(turns: bool) -> Callable[..., Iterator[Tensor]]:
    """What stands for a generator that has learned: it goes on from the frames as the prompt says, or not."""

    def generate(
        _: Generator, prompts: Sequence[str], *, seeds: Sequence[int], given_NTHWC: Tensor, **__: Any
    ) -> Iterator[Tensor]:
        for prompt, given_THWC in zip(prompts, given_NTHWC, strict=True):
            yield _continued(prompt, given_THWC, turns=turns)

    return generate


def _continued(prompt: str, given_THWC: Tensor, *, turns: bool) -> Tensor:
    """The last given frame, shifted a pixel and a half a frame in the prompt's direction."""
    steps = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
    words = prompt.lower().replace(".", "").replace(",", "").split()
    way = next((step for word, step in steps.items() if word in words), (0, 0))
    down, across = way if turns else (way[1], way[0])
    frames = list(given_THWC)
    for number in range(1, 34 - len(given_THWC)):
        pixels = int(1.25 * number)
        frames.append(given_THWC[-1].roll((down * pixels, across * pixels), dims=(0, 1)))
    return torch.stack(frames)


@pytest.mark.parametrize("turns", [True, False])
def test_the_script_judges_what_was_made_and_writes_it(
    assets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    turns: bool,
) -> None:
    monkeypatch.setattr(Generator, "__call__", as_prompted(turns))
    record, sheet = tmp_path / "all.json", tmp_path / "sheet.png"
    flags = [f"--assets_dir={assets}", "--num_seen=0", "--num_unseen=2", "--num_turned=4", "--device=cpu"]
    flags += [f"--json={record}", f"--sheet={sheet}", "--require"]
    assert nano_quality.main(["--model", MODELS[0], *flags]) == 1
    out = capsys.readouterr().out
    assert "MISSED there is no row 'trained, 1 frame'" in out and "| tokenizer alone" in out
    found = json.loads(record.read_text())
    assert found["rows"][TURNED]["motion"] == (100 if turns else 0)
    assert found["rows"][TURNED]["colour"] == found["rows"][TURNED]["goes on"] == 100
    assert len(found["results"]) == 6 and sheet.stat().st_size > 1000


def test_a_stand_in_is_judged_wrong(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--assets_dir={assets}", "--num_seen=2", "--num_unseen=0", "--num_turned=1", "--num_steps=2"]
    assert main([*flags, "--device=cpu", "--backend=torch"]) == 0
    assert f"| {TURNED} | 1 | 0.0 |" in capsys.readouterr().out


def test_nothing_to_judge_is_refused() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--num_seen=0", "--num_unseen=0", "--num_turned=0"])
    assert stopped.value.code == 2


def test_a_missing_folder_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--assets_dir={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_the_prompts_are_those_of_their_scenes(starts: list[Start]) -> None:
    from cosmos_nemo.training.nano.captions import PHRASINGS, UNSEEN_PHRASINGS

    for start in starts:
        assert start.item.scene in ALL_SCENES
        phrasings = (*PHRASINGS, *UNSEEN_PHRASINGS)
        assert start.item.prompt in {caption(start.item.scene, phrasing) for phrasing in phrasings}
