import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import step_cache
from benchmarks.nano_generate import Generator, nano_job
from benchmarks.step_cache import Maker, settings
from tests.fakes import CPU

FLAGS = ("--num_steps", "8", "--num_video_frames", "9", "--height", "64", "--width", "64")
PROMPT = "A red ball rolls to the right."


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Of 8 steps in place of 35: nine denoiser calls of two network calls."""
    monkeypatch.setattr(step_cache, "ALL_STEPS", 8)
    return Maker(nano_job(FLAGS, device=CPU))


def test_without_reuse_it_makes_the_videos_of_the_package(maker: Maker) -> None:
    [expected] = Generator(nano_job(FLAGS, device=CPU))([PROMPT], seeds=[3], batch_size=1)
    found, calls = maker.video(PROMPT, 3, "8 steps")
    assert calls == 18
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("way", "calls"), [("5 steps", 12), ("blocks 2", 12), ("blocks 3", 10), ("guidance 2", 15)]
)
def test_a_way_computes_fewer_calls_and_changes_the_video(maker: Maker, way: str, calls: int) -> None:
    whole, _ = maker.video(PROMPT, 3, "8 steps")
    found, computed = maker.video(PROMPT, 3, way)
    assert computed == calls
    assert 15 < step_cache.psnr(found, whole) < 70


def test_a_way_is_told_in_two_words() -> None:
    assert [settings(way) for way in ("28 steps", "blocks 3", "guidance 4")] == [
        (28, 1, 1),
        (35, 3, 1),
        (35, 1, 4),
    ]
    with pytest.raises((KeyError, ValueError)):
        settings("layers 2")


def test_the_table_has_a_row_for_each_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, maker: Maker
) -> None:
    monkeypatch.setattr(step_cache, "Maker", lambda job: maker)
    record = tmp_path / "rows.json"
    words = ["--ways", "8 steps", "blocks 2", "--prompts", PROMPT, "--json", str(record)]
    step_cache.main(words)
    same, reused = json.loads(record.read_text())
    assert (same["saves"], same["psnr"]) == (1, [math.inf])
    assert reused["saves"] == 18 / 12
    assert f"| blocks 2 | 1.50 | {reused['psnr'][0]:.1f} |" in capsys.readouterr().out
