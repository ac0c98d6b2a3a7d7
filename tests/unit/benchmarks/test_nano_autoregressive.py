import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import nano_autoregressive, nano_quality
from benchmarks.nano_autoregressive import NUM_GIVEN, base_flags, main, misses, parse
from benchmarks.nano_tokens import (
    FLAT_TEMPERATURE,
    MISTAKES,
    MODEL,
    TokenGenerator,
    digits_reversed,
    swapped_axes,
    swapped_positions,
    token_job,
)
from benchmarks.nano_video2world import choose_starts
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.cli import parse_autoregressive
from cosmos_nemo.job import Job
from cosmos_nemo.models.discrete_tokenizer.fsq import codes_of
from cosmos_nemo.stages.token_generation import TokenGeneration
from cosmos_nemo.tools.standin import write_standin
from tests.fakes import CPU
from tests.tiny_tokens import BASE, random_tokens, tiny_transformer


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "assets"
    write_standin([CARDS[MODEL]], folder, seed=0, layout="folder")
    return folder


@pytest.fixture(scope="module")
def job(assets: Path) -> Job:
    return token_job(base_flags(parse([f"--assets_dir={assets}"])), device=CPU)


@pytest.fixture(scope="module")
def given_NTHWC() -> Tensor:
    starts = choose_starts(counts=(NUM_GIVEN,), num_seen=2, num_unseen=0, num_turned=0, seed=0)
    return torch.stack([start.clip_THWC[:NUM_GIVEN] for start in starts])


class Copying:
    """Instead of a transformer: every further latent frame is the last that is given."""

    def __init__(self) -> None:
        self.prompts: list[Tensor] = []
        self.temperatures: list[float] = []

    def __call__(self, stage: TokenGeneration, prompt_BThw: Tensor, *, sampling: Any, seeds: Any) -> Tensor:
        assert len(seeds) == len(prompt_BThw)
        self.prompts.append(prompt_BThw)
        self.temperatures.append(sampling.temperature)
        return torch.cat([prompt_BThw, prompt_BThw[:, -1:].repeat(1, 5 - prompt_BThw.shape[1], 1, 1)], dim=1)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Copying:
    it = Copying()
    monkeypatch.setattr(TokenGeneration, "__call__", lambda stage, *args, **named: it(stage, *args, **named))
    return it


def videos(job: Job, given_NTHWC: Tensor, *, mistake: str = "none", batch_size: int = 2) -> list[Tensor]:
    generator = TokenGenerator(job, mistake=mistake)
    return list(generator(given_NTHWC, seeds=[3, 4], batch_size=batch_size))


def test_a_video_of_a_batch_is_the_one_that_it_is_alone(job: Job, given_NTHWC: Tensor) -> None:
    together, alone = videos(job, given_NTHWC), videos(job, given_NTHWC, batch_size=1)
    assert [tuple(video.shape) for video in together] == [(33, 128, 128, 3)] * 2
    assert all(torch.equal(one, two) for one, two in zip(together, alone, strict=True))


def test_reversed_digits_are_other_ids_and_reversed_again_the_same() -> None:
    levels, ids = (8, 5, 3), torch.arange(120).view(1, 2, 6, 10)
    turned = digits_reversed(ids, levels)
    assert sorted(turned.flatten().tolist()) == list(range(120))
    assert (turned != ids).float().mean() > 0.9
    assert torch.equal(digits_reversed(turned, levels[::-1]), ids)
    assert torch.equal(codes_of(turned, levels[::-1]).flip(1), codes_of(ids, levels))


def test_the_reversed_digits_are_what_the_transformer_sees_and_what_is_given_is_shown_right(
    job: Job, given_NTHWC: Tensor, copying: Copying
) -> None:
    right, wrong = videos(job, given_NTHWC), videos(job, given_NTHWC, mistake="digits_reversed")
    assert all(torch.equal(one, two) for one, two in zip(right, wrong, strict=True))
    seen, turned = copying.prompts
    assert torch.equal(digits_reversed(seen, (8, 5, 5, 5, 5)), turned) and not torch.equal(seen, turned)


def test_frames_given_in_reversed_order_are_what_the_tokenizer_sees(
    job: Job, given_NTHWC: Tensor, copying: Copying
) -> None:
    videos(job, given_NTHWC, mistake="given_reversed")
    videos(job, given_NTHWC.flip(1))
    assert torch.equal(*copying.prompts)


def test_a_flattened_distribution_is_one_of_a_high_temperature(
    job: Job, given_NTHWC: Tensor, copying: Copying
) -> None:
    for mistake in ("none", "flattened"):
        videos(job, given_NTHWC, mistake=mistake)
    assert copying.temperatures == [1.0, FLAT_TEMPERATURE]


def test_swapped_axes_are_angles_of_rows_at_frames_for_as_long_as_the_context_lasts() -> None:
    shape = replace(BASE, latent_THW=(3, 3, 4))
    network, tokens = tiny_transformer(shape), random_tokens(shape)
    wrong, right = swapped_positions(network, 36), network.positions(36)
    for turned, straight in ((wrong.cos, right.cos), (wrong.sin, right.sin)):
        grids = (part.view(3, 3, 4, -1) for part in (turned, straight))
        one, two = grids
        assert torch.equal(one, two.transpose(0, 1)) and not torch.equal(one, two)
    expected = network(tokens)
    with swapped_axes(network, is_wanted=True):
        assert not torch.allclose(network(tokens), expected)
    assert torch.equal(network(tokens), expected)
    with swapped_axes(network, is_wanted=False):
        assert torch.equal(network(tokens), expected)


def test_more_rows_than_frames_have_positions_of_their_own() -> None:
    network = tiny_transformer(replace(BASE, latent_THW=(3, 5, 2)))
    assert swapped_positions(network, 30).cos.shape == network.positions(30).cos.shape
    assert torch.equal(swapped_positions(network, 7).sin, swapped_positions(network, 30).sin[:7])


def clips_themselves(*, seed: int = 0) -> Any:
    """Instead of TokenGenerator.__call__: the clips that the frames were taken from."""

    def call(
        self: TokenGenerator, given_NTHWC: Tensor, *, seeds: Sequence[int], batch_size: int, on_batch: Any
    ) -> Iterator[Tensor]:
        starts = choose_starts(counts=(NUM_GIVEN,), num_seen=4, num_unseen=3, num_turned=0, seed=seed)
        for given, start in zip(given_NTHWC, starts, strict=True):
            assert torch.equal(given, start.clip_THWC[:NUM_GIVEN])
            yield start.clip_THWC

    return call


def test_the_script_judges_what_was_made_and_writes_it(
    assets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(TokenGenerator, "__call__", clips_themselves())
    record, sheet = tmp_path / "all.json", tmp_path / "sheet.png"
    flags = [f"--assets_dir={assets}", "--num_seen=4", "--num_unseen=3", "--device=cpu", "--require"]
    assert nano_quality.main(["--model", MODEL, *flags, f"--json={record}", f"--sheet={sheet}"]) == 0
    assert "TokenSampling(temperature=1.0, top_p=0.8" in capsys.readouterr().out
    found = json.loads(record.read_text())
    rows = found["rows"]
    for name in ("trained, 9 frames", "held out, 9 frames"):
        assert rows[name]["colour"] == rows[name]["motion"] == rows[name]["goes on"] == 100
    # A random tokenizer keeps nothing.
    assert rows["tokenizer alone"]["colour"] == 0
    assert len(found["results"]) == 7 and sheet.stat().st_size > 1000


def test_a_stand_in_is_judged_wrong_with_every_mistake(
    assets: Path, capsys: pytest.CaptureFixture[str], copying: Copying
) -> None:
    flags = [f"--assets_dir={assets}", "--num_seen=1", "--num_unseen=0", "--device=cpu", "--backend=torch"]
    for mistake in MISTAKES:
        assert main([*flags, f"--mistake={mistake}"]) == 0
        assert f"mistake {mistake}, cpu float32: 1 videos" in capsys.readouterr().out
    assert main([*flags, "--require"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_what_is_missed_is_said_with_the_row_and_the_limit() -> None:
    good = {"colour": 98.0, "motion": 95.0}
    rows = {"trained, 9 frames": dict(good), "held out, 9 frames": {"colour": 93.0, "motion": 90.0}}
    assert misses(rows) == []
    rows["trained, 9 frames"]["colour"] = 97.9
    rows["held out, 9 frames"]["motion"] = 89.9
    assert misses(rows) == [
        "colour: 97.9 % (trained, 9 frames), 98 % required",
        "motion: 89.9 % (held out, 9 frames), 90 % required",
    ]
    del rows["held out, 9 frames"]
    assert "there is no row 'held out, 9 frames'" in misses({**rows, "trained, 9 frames": good})[0]


def test_the_flags_are_those_of_the_door() -> None:
    asked = parse(["--checkpoint=a/b", "--temperature=0.5", "--top_p=0.9", "--backend=torch"])
    flags = ["--model", MODEL, "--input_image_or_video_path", "clip.mp4", *base_flags(asked)]
    request = parse_autoregressive(flags).request
    assert (request.temperature, request.top_p) == (0.5, 0.9)  # type: ignore[attr-defined]


def test_nothing_to_judge_and_a_missing_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--num_seen=0", "--num_unseen=0"])
    assert stopped.value.code == 2
    assert main([f"--assets_dir={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    assert nano_autoregressive.MODEL in nano_quality.SISTERS
