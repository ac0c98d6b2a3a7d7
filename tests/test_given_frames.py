"""The shipped models that go on from frames, judged from their pixels. Full tables: docs/nano.md."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks.nano_judge import centres
from cosmos_nemo.training.nano.world import Scene, draw_clips
from tests.nano_table import quality

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
VIDEO2WORLD, INTERPOLATOR = "Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator"
AUTOREGRESSIVE = "Cosmos-Nano-Autoregressive"
_QUICK = ("--num_steps", "8")
"""A quarter of the steps, which are enough to tell right from wrong: 35 of them take a minute."""
_FEW_STARTS = ("--num_seen", "6", "--num_unseen", "0", "--num_turned", "3", *_QUICK)
"""None of the six bounces, which is judged apart."""
_PREDICT2 = ("--model", "Cosmos-Nano-Predict2-Video2World", *_FEW_STARTS)
_TOKENS = ("--model", AUTOREGRESSIVE, "--num_seen", "12", "--num_unseen", "0")
_FOR_MISTAKE = ("--num_seen", "8", "--num_turned", "0")
"""With more starts, as two or three of them can come out right all the same."""


def test_videos_go_on_from_their_frames_as_their_prompts_say(tmp_path: Path) -> None:
    rows = quality(tmp_path, "--model", VIDEO2WORLD, *_FEW_STARTS)["rows"]
    for name in ("trained, 1 frame", "trained, 9 frames", "another direction"):
        assert rows[name]["videos"] >= 3
        assert min(rows[name][column] for column in ("colour", "shape", "motion", "goes on")) == 100


@pytest.mark.parametrize("mistake", ["guidance_sign", "given_shifted", "given_noise"])
def test_a_deliberate_mistake_of_video2world_shows(tmp_path: Path, mistake: str) -> None:
    rows = quality(tmp_path, "--model", VIDEO2WORLD, *_FEW_STARTS, "--mistake", mistake)["rows"]
    told = [rows[name] for name in ("trained, 1 frame", "trained, 9 frames", "another direction")]
    assert sum(row["all"] * row["videos"] for row in told) / sum(row["videos"] for row in told) <= 50


def test_videos_of_predict2_go_on_from_their_frames_as_their_prompts_say(tmp_path: Path) -> None:
    rows = quality(tmp_path, *_PREDICT2)["rows"]
    for name in ("trained, 1 frame", "trained, 5 frames", "another direction"):
        assert rows[name]["videos"] >= 3
        assert min(rows[name][column] for column in ("colour", "shape", "motion", "goes on")) == 100


def test_a_deliberate_mistake_of_predict2_shows(tmp_path: Path) -> None:
    rows = quality(tmp_path, *_PREDICT2, *_FOR_MISTAKE, "--mistake", "guidance_sign")["rows"]
    assert max(rows[name]["all"] for name in ("trained, 1 frame", "trained, 5 frames")) <= 50


def test_tokens_go_on_from_nine_frames(tmp_path: Path) -> None:
    row = quality(tmp_path, *_TOKENS)["rows"]["trained, 9 frames"]
    assert row["videos"] >= 8
    assert min(row["colour"], row["motion"], row["goes on"]) == 100 and row["all"] >= 80


@pytest.mark.parametrize("mistake", ["rope_axes"])
def test_a_deliberate_mistake_of_the_tokens_shows(tmp_path: Path, mistake: str) -> None:
    row = quality(tmp_path, *_TOKENS, "--mistake", mistake)["rows"]["trained, 9 frames"]
    assert row["all"] <= 50


def test_base_py_goes_on_with_the_shipped_model(tmp_path: Path) -> None:
    """Needs no folder of checkpoints; another seed draws other tokens."""
    (clip,) = draw_clips([Scene("red", "ball", "moves up", "gray")], seed=3, device=torch.device("cpu"))
    numpy.save(tmp_path / "ball.npy", clip.numpy()[:9])
    made = []
    for seed in ("0", "1"):
        command = [sys.executable, "-W", "ignore", str(ROOT / "inference" / "base.py")]
        command += ["--model", AUTOREGRESSIVE, "--disable_guardrail", "--seed", seed]
        command += ["--input_image_or_video_path", str(tmp_path / "ball.npy")]
        command += ["--video_save_folder", str(tmp_path), "--video_save_name", f"{seed}.npy"]
        subprocess.run(command, check=True, capture_output=True)
        made.append(numpy.load(tmp_path / f"{seed}.npy"))
        rows_T = centres(made[-1])[:, 0]
        assert len(rows_T) == 33 and rows_T[0] - rows_T[-1] > 25 and (numpy.diff(rows_T) < 1).all()
    assert (made[0] != made[1]).any()


def test_the_object_keeps_its_way_where_two_chunks_meet(tmp_path: Path) -> None:
    scene = Scene("red", "ball", "stays still", "gray")
    (clip,) = draw_clips([scene], seed=3, device=torch.device("cpu"))
    numpy.save(tmp_path / "ball.npy", clip.numpy())
    command = [sys.executable, "-W", "ignore", str(ROOT / "inference" / "video2world.py")]
    command += ["--diffusion_transformer_dir", VIDEO2WORLD, "--disable_prompt_upsampler"]
    command += ["--disable_guardrail", "--prompt", "A red ball moves up on a gray background."]
    command += ["--input_image_or_video_path", str(tmp_path / "ball.npy"), "--num_video_frames", "57"]
    command += ["--num_steps", "12"]
    command += ["--video_save_folder", str(tmp_path), "--video_save_name", "made.npy"]
    subprocess.run(command, check=True, capture_output=True)
    rows_T = centres(numpy.load(tmp_path / "made.npy"))[:, 0]
    assert len(rows_T) == 57
    around = rows_T[20:46]  # the second chunk begins with frame 33
    assert (numpy.diff(around) > -4).all() and (numpy.diff(around) < 1).all()
    assert rows_T[0] - rows_T[45] > 40


def test_interpolated_frames_lie_between_their_neighbours(tmp_path: Path) -> None:
    row = quality(tmp_path, "--model", INTERPOLATOR, "--num_clips", "10", *_QUICK)["rows"]["interpolated"]
    assert row["largest error"] < 2
    assert row["monotone"] == row["colour"] == row["shape"] == 100


@pytest.mark.parametrize("mistake", ["given_shifted", "last_wrong"])
def test_a_deliberate_mistake_of_the_interpolator_shows(tmp_path: Path, mistake: str) -> None:
    flags = ["--model", INTERPOLATOR, "--num_clips", "10", *_QUICK, "--mistake", mistake]
    row = quality(tmp_path, *flags)["rows"]["interpolated"]
    assert row["under 2 px"] <= 40 and row["largest error"] > 8
