"""inference/world_interpolator.py as a person runs it: the document's command, pairs, batches, errors."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import numpy
import pytest

from cosmos_nemo.cli import world_interpolator
from cosmos_nemo.stages.media import file_digest
from tests.doors import commands
from tests.doors.instant import help_of
from tests.doors.test_general import Ended, _load
from tests.parallel import launcher

ROOT = Path(__file__).parents[2]
WORLD_INTERPOLATOR = ROOT / "inference/world_interpolator.py"
MODEL = "Cosmos-Predict1-7B-WorldInterpolator"
SMALL = ["--height", "32", "--width", "48", "--num_steps", "2"]
CLIP = "assets/diffusion/interpolation_example.mp4"
PLAIN = ["--disable_prompt_upsampler", "--disable_guardrail"]
SINGLE = ["--input_image_or_video_path", CLIP, "--prompt", "a red ball", *PLAIN, *SMALL]
NUM_FRAMES = 5
"""Of the tests' own video."""

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("world_interpolator") / "checkpoints"
    write_standin([find_card(MODEL)], folder, seed=0, layout="folder")
    return folder


@pytest.fixture
def run_here(
    checkpoints: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The door's main in this process, from a folder that holds `checkpoints`, the assets and own.npy."""
    door = _load(WORLD_INTERPOLATOR)
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    numpy.save(
        tmp_path / "own.npy", numpy.random.RandomState(0).randint(0, 256, (NUM_FRAMES, 8, 8, 3), numpy.uint8)
    )
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "COSMOS_NEMO_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: str) -> Ended:
        capfd.readouterr()
        status = door.main(list(argv), environ={"COSMOS_NEMO_CACHE": ""})
        return Ended(status, *capfd.readouterr())

    return run


def _manifest(video: Path) -> dict[str, Any]:
    return json.loads(video.with_suffix(".json").read_text())  # type: ignore[no-any-return]


def test_the_documents_command_runs(run_here: Run, tmp_path: Path) -> None:
    [argv] = [c.argv for c in commands.commands_of("002") if c.title.startswith("example 1")]
    ended = run_here(*argv, *SMALL)
    assert ended.returncode == 0, ended.stderr
    video = tmp_path / "outputs/diffusion-world-interpolator-7b.mp4"
    assert len([*imageio.get_reader(video).iter_data()]) == 19
    manifest = _manifest(video)
    assert manifest["model"] == MODEL
    assert (manifest["request"]["guidance"], manifest["request"]["seed"]) == (-1.0, 11)
    assert manifest["request"]["sampler"] == "RES"
    assert manifest["visual_input_sha256"] == file_digest(ROOT / CLIP)
    assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}
    assert manifest["prompt"] == video.with_suffix(".txt").read_text() != ""
    assert set(manifest["stages"]) == {
        *("text_guard", "upsampler", "text_encoder", "denoise", "tokenizer", "video_guard")
    }


def test_a_module_call_works_too(tmp_path: Path) -> None:
    """python3 -m, as in the document, from the repository."""
    ended = subprocess.run(
        [sys.executable, "-m", "inference.world_interpolator", *SINGLE, "--dry_run"],
        cwd=ROOT,
        env=launcher.clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert MODEL in ended.stdout


OWN = [*SINGLE, "--input_image_or_video_path", "own.npy"]


@pytest.mark.parametrize(
    ("flags", "num_frames"),
    [
        ([], 1 + 9 * 4),
        (["--num_frame_pairs", "1"], 10),
        (["--frame_stride", "2"], 1 + 9 * 2),
        (["--frame_index_start", "3"], 10),
    ],
)
def test_there_are_as_many_clips_as_pairs(
    run_here: Run, tmp_path: Path, flags: list[str], num_frames: int
) -> None:
    ended = run_here(*OWN, *flags, "--video_save_name", "o.npy")
    assert ended.returncode == 0, ended.stderr
    assert numpy.load(tmp_path / "outputs/o.npy").shape == (num_frames, 32, 48, 3)


def test_flags_that_were_read_and_forgotten_change_the_video(run_here: Run, tmp_path: Path) -> None:
    variants: dict[str, list[str]] = {
        "released": [],
        "again": ["--guidance", "-1", "--seed", "11", "--frame_index_start", "0"],
        "guided": ["--guidance", "2"],
        "seeded": ["--seed", "12"],
        "later": ["--frame_index_start", "1"],
        "drawn": ["--draw_condition_noise"],
    }
    for name, flags in variants.items():
        ended = run_here(*OWN, "--num_frame_pairs", "1", *flags, "--video_save_name", f"{name}.npy")
        assert ended.returncode == 0, ended.stderr
    made = {name: (tmp_path / f"outputs/{name}.npy").read_bytes() for name in variants}
    assert made["released"] == made.pop("again")
    assert len(set(made.values())) == len(made)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num_frame_pairs", "5"], "has 5 frame(s)"),
        (["--frame_index_start", "4"], "has 5 frame(s)"),
        (["--frame_stride", "5"], "has 5 frame(s)"),
        (["--num_input_frames", "6"], "has 5 frame(s)"),
        (["--num_frame_pairs", "0"], "--num_frame_pairs 0 must be at least 1"),
        (["--frame_stride", "0"], "--frame_stride 0 must be at least 1"),
        (["--num_video_frames", "121"], "--num_video_frames 121 does not fit"),
        (["--input_image_or_video_path", "assets/diffusion/video2world_input0.jpg"], "has 1 frame(s)"),
        (["--input_image_or_video_path", "nowhere.mp4"], "nowhere.mp4 does not exist"),
        (["--keep_input_size"], "--keep_input_size is for video2world.py"),
        (["--model", "Cosmos-Predict1-7B-Video2World"], "run it with inference/video2world.py"),
    ],
)
def test_what_cannot_be_filled_in_exits_2_with_a_sentence(
    run_here: Run, tmp_path: Path, flags: list[str], says: str
) -> None:
    ended = run_here(*OWN, *flags)
    assert ended.returncode == 2
    assert says in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "outputs").exists()


def test_without_anything_to_fill_in_it_exits_2(run_here: Run) -> None:
    ended = run_here("--prompt", "a red ball", *SMALL)
    assert ended.returncode == 2
    assert "--input_image_or_video_path is missing" in ended.stderr


def test_the_videos_of_a_batch_do_not_overwrite_one_another(run_here: Run, tmp_path: Path) -> None:
    """The released script wrote all of them under one name."""
    lines = [
        *({"visual_input": "own.npy", "prompt": "a"}, {"visual_input": CLIP, "prompt": "b", "seed": 3}),
        {"visual_input": "assets/diffusion/video2world_input0.jpg", "prompt": "c"},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--batch_input_path", "b.jsonl", "--num_frame_pairs", "2", *PLAIN, *SMALL]
    ended = run_here(*flags)
    assert ended.returncode == 1, ended.stderr
    assert re.search(r'line 3: "visual_input" \S+input0\.jpg has 1 frame\(s\)', ended.stdout)
    assert "2 videos made, 0 were there, 0 blocked, 0 failed, 1 bad lines" in ended.stdout
    assert [_manifest(tmp_path / f"outputs/{i}.mp4")["request"]["seed"] for i in range(2)] == [11, 3]
    assert "0 videos made, 2 were there" in run_here(*flags).stdout


@pytest.mark.parametrize("flags", [[], ["--guidance", "2", "--cfg_parallel", "off"]])
def test_two_ranks_which_do_not_divide_the_three_latent_frames_make_the_frames_of_one(
    run_here: Run, tmp_path: Path, flags: list[str]
) -> None:
    own = [*OWN, "--num_frame_pairs", "2", *flags]
    ended = run_here(*own, "--video_save_name", "one.npy")
    assert ended.returncode == 0, ended.stderr
    places = ["--checkpoint_dir", str(tmp_path / "checkpoints"), "--video_save_folder", str(tmp_path)]
    places += ["--input_image_or_video_path", str(tmp_path / "own.npy"), "--video_save_name", "two.npy"]
    launcher.run_ranks(2, WORLD_INTERPOLATOR, *own, *places)
    assert _manifest(tmp_path / "two.npy")["plan"]["cp"] == 2
    one, two = (numpy.load(path).astype(int) for path in (tmp_path / "outputs/one.npy", tmp_path / "two.npy"))
    assert abs(two - one).max() <= 1
    assert (two != one).mean() <= 0.002


def test_a_dry_run_looks_at_the_video_and_writes_nothing(run_here: Run, tmp_path: Path) -> None:
    ended = run_here(*OWN, "--dry_run")
    assert ended.returncode == 0, ended.stderr
    assert "guidance -1: " in ended.stdout
    assert run_here(*OWN, "--dry_run", "--num_frame_pairs", "9").returncode == 2
    assert not (tmp_path / "outputs").exists()


def test_the_documents_help_waits_for_no_slow_library() -> None:
    [help_command] = [c for c in commands.commands_of("002") if c.title == "help"]
    assert help_command.argv == ("--help",)
    found = help_of(str(WORLD_INTERPOLATOR))
    assert all(flag in found for flag in ("--num_frame_pairs", "--frame_stride", "--draw_condition_noise"))


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--num_gpus", "8"], "--num_gpus"),
        (["--video_save_folder", "/proc/here"], "--video_save_folder"),
        (["--checkpoint_dir", "nowhere"], "--checkpoint_dir"),
        (["--diffusion_transformer_dir", f"{MODEL}_post-trained"], "--diffusion_transformer_dir"),
        (["--num_video_frames", "9"], "--num_video_frames"),
        (["--num_frame_pairs", "99"], "--num_frame_pairs"),
        (["--input_image_or_video_path", "nowhere.png"], "--input_image_or_video_path"),
        (["--cfg_parallel", "on"], "--cfg_parallel"),
    ],
)
def test_errors_name_only_flags_that_this_door_has(run_here: Run, flags: list[str], names: str) -> None:
    own = {flag for action in world_interpolator._parser()._actions for flag in action.option_strings}
    ended = run_here(*OWN, *flags)
    assert ended.returncode == 2, ended.stderr
    command = re.compile(r"`.*?`|torchrun --\S+")
    named = set(re.findall(r"--[a-z][a-z0-9_]*", command.sub("", ended.stderr)))
    assert names in named and named <= own
