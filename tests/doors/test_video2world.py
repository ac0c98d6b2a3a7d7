"""inference/video2world.py as a person runs it, and general.py with a Video2World model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import numpy
import pytest

from cosmos_nemo.cli import video2world
from cosmos_nemo.stages.media import file_digest
from tests.doors import commands
from tests.doors.instant import help_of
from tests.doors.test_general import Ended, _load
from tests.parallel import launcher

ROOT = Path(__file__).parents[2]
VIDEO2WORLD = ROOT / "inference/video2world.py"
GENERAL = ROOT / "inference/general.py"
SEVEN, NEMO = "Cosmos-Predict1-7B-Video2World", "Cosmos-1.0-Diffusion-7B-Video2World"
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "17", "--num_steps", "2"]
IMAGE, CLIP = "assets/diffusion/video2world_input0.jpg", "assets/diffusion/video2world_input1.mp4"
PLAIN = ["--disable_prompt_upsampler", "--disable_guardrail"]
SINGLE = ["--input_image_or_video_path", IMAGE, "--prompt", "a red ball", *PLAIN, *SMALL]

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("video2world") / "checkpoints"
    write_standin([find_card(SEVEN), find_card(NEMO)], folder, seed=0, layout="folder")
    return folder


@pytest.fixture
def here(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `checkpoints` and the documents' assets in it."""
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "COSMOS_NEMO_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run_here(here: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """A door's main in this process."""

    def run(*argv: str, door: Path = VIDEO2WORLD) -> Ended:
        capfd.readouterr()
        status = _load(door).main(list(argv), environ={"COSMOS_NEMO_CACHE": ""})
        return Ended(status, *capfd.readouterr())

    return run


def _document(title: str) -> list[str]:
    """A command of the document, with Predict1's model in the place of Predict2's."""
    [argv] = [list(c.argv) for c in commands.commands_of("003") if c.title == title]
    argv[argv.index("--diffusion_transformer_dir") + 1] = SEVEN
    return argv


def _manifest(video: Path) -> dict[str, Any]:
    return json.loads(video.with_suffix(".json").read_text())  # type: ignore[no-any-return]


def test_a_document_command_that_offloads_everything_runs(run_here: Run, here: Path) -> None:
    ended = run_here(
        *_document("example 2: single generation on the 14B model with model offloading"), *SMALL
    )
    assert ended.returncode == 0, ended.stderr
    video = here / "outputs/diffusion-video2world-14b.mp4"
    manifest = _manifest(video)
    assert manifest["model"] == SEVEN
    assert manifest["request"]["sampler"] == "EDM"
    assert manifest["request"]["visual_input"] == IMAGE
    assert manifest["visual_input_sha256"] == file_digest(ROOT / IMAGE)
    assert manifest["prompt_upsampler"] == "on, describes the visual input"
    assert manifest["prompt"] == video.with_suffix(".txt").read_text() != ""
    assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}
    assert set(manifest["stages"]) == {
        *("text_guard", "upsampler", "text_encoder", "denoise", "tokenizer", "video_guard")
    }
    assert len([*imageio.get_reader(video).iter_data()]) == 17


@pytest.mark.parametrize(
    ("title", "folder"),
    [
        ("example 4: batch generation", "diffusion-video2world-2b-batch"),
        ("example 5: batch generation without prompt upsampler", "diffusion-video2world-2b-batch-wo-ps"),
    ],
)
def test_the_documents_batches_run(run_here: Run, here: Path, title: str, folder: str) -> None:
    argv = _document(title)
    ended = run_here(*argv, *SMALL)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in (here / folder).iterdir()} == {
        f"{i}{ending}" for i in range(2) for ending in (".mp4", ".txt", ".json")
    }
    lines = (ROOT / argv[argv.index("--batch_input_path") + 1]).read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(map(json.loads, lines)):
        manifest = _manifest(here / folder / f"{i}.mp4")
        assert manifest["request"]["visual_input"] == line["visual_input"]
        assert manifest["request"]["num_input_frames"] == 9
        assert "prompt" not in line or manifest["prompt"] == line["prompt"]


def test_other_frames_to_start_from_make_another_video(run_here: Run, here: Path) -> None:
    for name, path, frames in (("a", IMAGE, "1"), ("b", CLIP, "1"), ("c", CLIP, "9"), ("d", IMAGE, "1")):
        ended = run_here(
            *SINGLE,
            *("--input_image_or_video_path", path, "--num_input_frames", frames),
            *("--video_save_name", f"{name}.npy"),
        )
        assert ended.returncode == 0, ended.stderr
    made = {name: (here / f"outputs/{name}.npy").read_bytes() for name in "abcd"}
    assert made["a"] == made["d"]
    assert len(set(made.values())) == 3


def test_the_input_size_is_kept_if_asked_for(run_here: Run, here: Path) -> None:
    frames_THWC = numpy.random.RandomState(0).randint(0, 256, (9, 30, 70, 3), numpy.uint8)
    numpy.save(here / "wide.npy", frames_THWC)
    flags = [*SINGLE, "--input_image_or_video_path", "wide.npy"]
    for name, more in (("made", []), ("kept", ["--keep_input_size"])):
        ended = run_here(*flags, "--video_save_name", name, *more)
        assert ended.returncode == 0, ended.stderr
    made, kept = (imageio.get_reader(here / f"outputs/{name}.mp4").get_data(0) for name in ("made", "kept"))
    assert (made.shape, kept.shape) == ((32, 48, 3), (30, 70, 3))


def test_more_frames_than_the_network_makes_at_once_come_in_chunks(run_here: Run, here: Path) -> None:
    ended = run_here(
        *SINGLE, "--num_video_frames", "129", "--num_steps", "1", "--video_save_name", "long.npy"
    )
    assert ended.returncode == 0, ended.stderr
    assert numpy.load(here / "outputs/long.npy").shape == (129, 32, 48, 3)
    refused = run_here(*SINGLE, "--num_video_frames", "128")
    assert refused.returncode == 2
    assert "--num_video_frames 128" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--input_image_or_video_path", "nowhere.png"], "nowhere.png does not exist"),
        (["--num_input_frames", "9"], "is an image, and --num_input_frames 9 needs a video"),
        (["--num_input_frames", "2"], "--num_input_frames 2 must be 1 or 9"),
        (["--input_image_or_video_path", "torn.png"], "cannot be decoded"),
        (["--word_limit_to_skip_upsampler", "9"], "is for text2world.py"),
        (["--diffusion_transformer_dir", "Cosmos-Predict1-7B-Text2World"], "inference/text2world.py"),
    ],
)
def test_what_cannot_be_gone_on_from_exits_2_with_a_sentence(
    run_here: Run, here: Path, flags: list[str], says: str
) -> None:
    (here / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 99)
    ended = run_here(*SINGLE, *flags)
    assert ended.returncode == 2
    assert says in ended.stderr and "Traceback" not in ended.stderr
    assert not (here / "outputs").exists()


def test_without_anything_to_start_from_it_exits_2(run_here: Run) -> None:
    ended = run_here("--prompt", "a red ball", *SMALL)
    assert ended.returncode == 2
    assert "--input_image_or_video_path is missing" in ended.stderr


def test_a_prompt_beside_the_upsampler_is_told_not_to_be_used(
    run_here: Run, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--input_image_or_video_path", IMAGE, "--prompt", "a blue cube", "--disable_guardrail", *SMALL]
    ended = run_here(*flags)
    assert ended.returncode == 0, ended.stderr
    assert "--prompt is not used" in caplog.text
    assert "a blue cube" not in (here / "outputs/output.txt").read_text()


LINES = [
    *(
        {"prompt": "a", "visual_input": IMAGE},
        {"prompt": "b"},
        {"prompt": "c", "visual_input": "nowhere.png"},
    ),
    {"prompt": "d", "visual_input": "own.npy", "seed": 4},
]


@pytest.fixture
def batch(here: Path) -> list[str]:
    numpy.save(here / "own.npy", numpy.zeros((9, 32, 48, 3), numpy.uint8))
    (here / "b.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    return ["--batch_input_path", "b.jsonl", *PLAIN, *SMALL]


def test_of_a_batch_what_has_nothing_to_start_from_is_told_and_the_rest_is_made(
    run_here: Run, here: Path, batch: list[str]
) -> None:
    ended = run_here(*batch)
    assert ended.returncode == 1, ended.stderr
    assert 'line 2: it has no "visual_input"' in ended.stdout
    assert 'line 3: "visual_input" nowhere.png does not exist' in ended.stdout
    assert "2 videos made, 0 were there, 0 blocked, 0 failed, 2 bad lines" in ended.stdout
    assert {path.name for path in (here / "outputs").glob("*.mp4")} == {"0.mp4", "3.mp4"}


def test_a_batch_run_again_makes_only_what_starts_from_another_image_now(
    run_here: Run, here: Path, batch: list[str]
) -> None:
    run_here(*batch)
    assert "0 videos made, 2 were there" in run_here(*batch).stdout
    before = {name: (here / f"outputs/{name}.mp4").read_bytes() for name in "03"}
    numpy.save(here / "own.npy", numpy.full((9, 32, 48, 3), 200, numpy.uint8))
    assert "1 videos made, 1 were there" in run_here(*batch).stdout
    after = {name: (here / f"outputs/{name}.mp4").read_bytes() for name in "03"}
    assert before["0"] == after["0"] and before["3"] != after["3"]


def test_ranks_agree_on_a_batch_of_which_rank_0_alone_sees_what_is_missing(
    run_here: Run, here: Path, batch: list[str]
) -> None:
    run_here(*batch, "--video_save_folder", "one")
    flags = [word if word != "b.jsonl" else str(here / word) for word in batch]
    lines = [{**line, "visual_input": str(here / line["visual_input"])} for line in LINES if len(line) > 1]
    (here / "b.jsonl").write_text("\n".join(map(json.dumps, [lines[0], LINES[1], *lines[1:]])))
    places = ["--checkpoint_dir", str(here / "checkpoints"), "--video_save_folder", str(here / "two")]
    ranks = launcher.start_ranks(2, VIDEO2WORLD, *flags, *places)
    ended = launcher.wait_for(ranks, timeout=120)
    assert [one.status for one in ended] == [1, 1], ended[0].err
    assert "2 videos made, 0 were there, 0 blocked, 0 failed, 2 bad lines" in ended[0].out
    for i in (0, 3):
        one, two = (_manifest(here / folder / f"{i}.mp4") for folder in ("one", "two"))
        assert one["item"] == two["item"]
        assert two["plan"]["cfg"] == 2
        frames = [imageio.mimread(here / folder / f"{i}.mp4") for folder in ("one", "two")]
        assert numpy.abs(numpy.subtract(*frames, dtype=numpy.int16)).max() <= 4  # of two encodings


def test_general_goes_on_from_a_file_with_a_nemo_checkpoint(run_here: Run, here: Path) -> None:
    flags = ["--model", NEMO, "--cosmos_assets_dir", "checkpoints", "--prompt", "a red ball", *SMALL]
    flags += ["--disable_guardrail", "--video_save_path", "o.mp4"]
    ended = run_here(
        *flags, "--conditioned_image_or_video_path", CLIP, "--num_input_frames", "9", door=GENERAL
    )
    assert ended.returncode == 0, ended.stderr
    manifest = _manifest(here / "o.mp4")
    assert (manifest["model"], manifest["request"]["sampler"]) == (NEMO, "RES")
    assert manifest["visual_input_sha256"] == file_digest(ROOT / CLIP)
    refused = run_here(*flags, "--conditioned_image_or_video_path", "nowhere.png", door=GENERAL)
    assert refused.returncode == 2
    assert "--conditioned_image_or_video_path nowhere.png does not exist" in refused.stderr


def test_a_dry_run_says_what_would_run_and_looks_at_the_file(run_here: Run, here: Path) -> None:
    ended = run_here(*SINGLE, "--dry_run")
    assert ended.returncode == 0, ended.stderr
    assert f"{SEVEN}: 17 frames of 48 x 32" in ended.stdout
    assert run_here(*SINGLE, "--dry_run", "--num_input_frames", "9").returncode == 2
    assert not (here / "outputs").exists()


def test_help_waits_for_no_slow_library() -> None:
    found = help_of(str(VIDEO2WORLD))
    assert all(flag in found for flag in ("--input_image_or_video_path", "--num_gpus", "--keep_input_size"))
    assert "--word_limit_to_skip_upsampler" not in found


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--num_gpus", "8"], "--num_gpus"),
        (["--video_save_folder", "/proc/here"], "--video_save_folder"),
        (["--checkpoint_dir", "nowhere"], "--checkpoint_dir"),
        (["--diffusion_transformer_dir", f"{SEVEN}_post-trained"], "--diffusion_transformer_dir"),
        (["--tokenizer_dir", "nowhere"], "--tokenizer_dir"),
        (["--num_video_frames", "8"], "--num_video_frames"),
        (["--num_overlap_frames", "2", "--num_video_frames", "129"], "--num_overlap_frames"),
        (["--input_image_or_video_path", "nowhere.png"], "--input_image_or_video_path"),
        (["--cp_size", "3"], "--cp_size"),
    ],
)
def test_errors_name_only_flags_that_this_door_has(run_here: Run, flags: list[str], names: str) -> None:
    own = {flag for action in video2world._parser()._actions for flag in action.option_strings}
    ended = run_here(*SINGLE, *flags)
    assert ended.returncode == 2, ended.stderr
    command = re.compile(r"`.*?`|torchrun --\S+")
    named = set(re.findall(r"--[a-z][a-z0-9_]*", command.sub("", ended.stderr)))
    assert names in named and named <= own


def test_an_encoder_that_is_missing_stops_the_run_before_anything_is_read(run_here: Run, here: Path) -> None:
    own = Path(shutil.copytree(here / "checkpoints", here / "own"))
    (own / "Cosmos-Tokenize1-CV8x8x8-720p/encoder.jit").unlink()
    ended = run_here(*SINGLE, "--checkpoint_dir", "own")
    assert ended.returncode == 2, ended.stderr
    assert "encoder" in ended.stderr and "Traceback" not in ended.stderr
    assert not (here / "outputs").exists()
