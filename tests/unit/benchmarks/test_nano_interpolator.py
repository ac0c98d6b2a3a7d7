import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import nano_quality
from benchmarks.nano_generate import Generator
from benchmarks.nano_interpolator import (
    MADE,
    MODEL,
    SHUFFLED,
    TOKENIZER,
    Pair,
    Result,
    choose_pairs,
    errors,
    is_monotone,
    judged,
    main,
    misses,
    row,
    rows_of,
)
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.tools.standin import write_standin


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return choose_pairs(count=20, seed=0)


@pytest.fixture(scope="module")
def true(pairs: list[Pair]) -> list[Result]:
    return [judged(pair, pair.clip_THWC) for pair in pairs]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "assets"
    write_standin([CARDS[MODEL]], folder, seed=0, layout="folder")
    return folder


def fade(first_HWC: Tensor, last_HWC: Tensor) -> Tensor:
    """Ten frames, one becoming fainter while the other appears."""
    share_T111 = torch.linspace(0, 1, 10)[:, None, None, None]
    return torch.lerp(first_HWC.float(), last_HWC.float(), share_T111).round().to(torch.uint8)


def of(made: Sequence[Result]) -> dict[str, float]:
    return row(zip(made, made, strict=True))


def moving(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.scene.motion != "stays still"]


def test_every_motion_but_bounces_comes_in_turn_over_a_way_that_can_be_judged(
    pairs: list[Pair], true: list[Result]
) -> None:
    counts = Counter(pair.scene.motion for pair in pairs)
    assert len(counts) == 5 and set(counts.values()) == {4} and "bounces" not in counts
    for pair, result in zip(pairs, true, strict=True):
        assert pair.clip_THWC.shape == (10, 128, 128, 3)
        way = np.hypot(*(np.array(result.drawn)[-1] - np.array(result.drawn)[0]))
        assert way < 0.5 if pair.scene.motion == "stays still" else 10 < way < 21


def test_exact_interpolation_is_right_in_everything(true: list[Result]) -> None:
    found = of(true)
    assert found["mean error"] == found["largest error"] == 0
    assert [found[name] for name in ("under 2 px", "monotone", "colour", "shape")] == [100] * 4


def test_a_cross_fade_fails(pairs: list[Pair]) -> None:
    made = [judged(pair, fade(pair.clip_THWC[0], pair.clip_THWC[-1])) for pair in moving(pairs)]
    found = of(made)
    assert found["under 2 px"] == 0 and found["mean error"] > 2 and found["colour"] < 60


@pytest.mark.parametrize("frame", [0, -1])
def test_a_frame_that_is_repeated_fails(pairs: list[Pair], frame: int) -> None:
    made = []
    for pair in moving(pairs):
        frames = pair.clip_THWC.clone()
        frames[1:-1] = frames[frame]
        made.append(judged(pair, frames))
    assert of(made)["under 2 px"] == 0


def test_a_turned_back_way_is_not_monotone_nor_near(pairs: list[Pair]) -> None:
    made = []
    for pair in moving(pairs):
        frames = pair.clip_THWC.clone()
        frames[1:-1] = frames[1:-1].flip(0)
        made.append(judged(pair, frames))
    assert of(made)["monotone"] == of(made)["under 2 px"] == 0


def test_an_object_that_vanishes_or_changes_its_colour_is_missed(pairs: list[Pair]) -> None:
    pair = next(pair for pair in moving(pairs) if pair.scene.colour in ("red", "blue"))
    empty = pair.clip_THWC.clone()
    empty[4] = empty[4, 0, 0]
    found = of([judged(pair, empty)])
    assert found["largest error"] == np.inf and found["monotone"] == found["under 2 px"] == 0
    red, green, blue = pair.clip_THWC.unbind(-1)
    other = pair.clip_THWC.clone()
    other[3:7] = torch.stack([blue, green, red], dim=-1)[3:7]
    assert of([judged(pair, other)])["colour"] == 0


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], True),
        ([0, 0, 0, 3, 3, 5, 9, 9, 9, 9], True),
        ([0, 1, 2, 1.6, 4, 5, 6, 7, 8, 9], True),
        ([0, 1, 2, 1.4, 4, 5, 6, 7, 8, 9], False),
        ([0, 1, 2, 3, 4, 5, 6, 7, 9.6, 9.4], False),
        ([0, -0.6, 2, 3, 4, 5, 6, 7, 8, 9], False),
        ([0, 1, 2, float("nan"), 4, 5, 6, 7, 8, 9], False),
    ],
)
def test_monotone_is_neither_back_nor_beyond(columns: list[float], expected: bool) -> None:
    drawn = np.stack([np.full(10, 5.0), np.arange(10.0)], axis=1)
    made = np.stack([np.full(10, 5.0), columns], axis=1)
    assert is_monotone(drawn, made) is expected
    assert is_monotone(drawn[:, ::-1], made[:, ::-1]) is expected


@pytest.mark.parametrize(("off", "expected"), [(0.9, True), (1.2, False)])
def test_what_stays_still_has_to_stay(off: float, expected: bool) -> None:
    drawn, made = np.full((10, 2), 5.0), np.full((10, 2), 5.0)
    made[4, 1] += off
    assert is_monotone(drawn, made) is expected


def test_errors_are_distances_of_the_frames_between() -> None:
    drawn, made = np.zeros((10, 2)), np.zeros((10, 2))
    made[0] = made[-1] = 50
    made[3] = 3, 4
    made[5] = np.nan
    assert errors(drawn, made).tolist() == [0, 0, 5, 0, np.inf, 0, 0, 0]


def test_shuffled_clips_are_far_off_and_require_names_what_is_missed(true: list[Result]) -> None:
    rows = rows_of(true, true, seed=0)
    assert list(rows) == [MADE, SHUFFLED, TOKENIZER]
    assert rows[SHUFFLED]["mean error"] > 20 and rows[SHUFFLED]["under 2 px"] < 10
    assert misses(rows) == []
    [missed] = misses(rows | {MADE: rows[MADE] | {"monotone": 98.0}})
    assert missed == "monotone: 98.0 % of the clips, 100 % required"
    assert len(misses(rows | {MADE: dict.fromkeys(rows[MADE], float("nan"))})) == 4


def learned(_: Generator, prompts: Sequence[str], *, given_NTHWC: Tensor, **__: Any) -> Iterator[Tensor]:
    """Drawn again: what a generator that has learned would make."""
    for pair in choose_pairs(count=len(prompts), seed=0):
        assert any(torch.equal(pair.clip_THWC[[0, -1]], given) for given in given_NTHWC)
        yield pair.clip_THWC


def fading(_: Generator, prompts: Sequence[str], *, given_NTHWC: Tensor, **__: Any) -> Iterator[Tensor]:
    for first_HWC, last_HWC in given_NTHWC:
        yield fade(first_HWC, last_HWC)


@pytest.mark.parametrize(("generate", "status"), [(learned, 0), (fading, 1)])
def test_require_passes_a_model_that_has_learned_and_no_cross_fade(
    assets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    generate: Any,
    status: int,
) -> None:
    monkeypatch.setattr(Generator, "__call__", generate)
    record, sheet = tmp_path / "all.json", tmp_path / "sheet.png"
    flags = [f"--assets_dir={assets}", "--num_clips=6", "--device=cpu", "--require"]
    flags += [f"--json={record}", f"--sheet={sheet}"]
    assert nano_quality.main(["--model", MODEL, *flags]) == status
    assert ("MISSED under 2 px" in capsys.readouterr().out) == (status == 1)
    found = json.loads(record.read_text())
    assert len(found["results"]) == 6 and (found["missed"] == []) == (status == 0)
    assert sheet.stat().st_size > 1000


def test_a_stand_in_is_judged_wrong(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--assets_dir={assets}", "--num_clips=2", "--num_steps=2", "--device=cpu", "--backend=torch"]
    assert main([*flags, "--require"]) == 1
    assert f"| {MADE} | 2 |" in capsys.readouterr().out


def test_a_missing_folder_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--assets_dir={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
