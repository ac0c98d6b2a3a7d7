"""inference/base.py as a person runs it: the document's commands, ranks, batches, decoders, errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import numpy
import pytest
from PIL import Image

from cosmos_nemo.cli import autoregressive
from cosmos_nemo.stages.media import file_digest
from tests.doors import commands
from tests.doors.instant import help_of
from tests.doors.test_general import Ended, _load
from tests.parallel import launcher

ROOT = Path(__file__).parents[2]
BASE = ROOT / "inference/base.py"
SMALL, LARGE, NANO = "Cosmos-Predict1-4B", "Cosmos-Predict1-12B", "Cosmos-Nano-Autoregressive"
CLIP = "assets/autoregressive/input.mp4"
ONE = ["--input_image_or_video_path", CLIP, "--disable_guardrail"]
QUICK = ["--num_steps", "2"]
"""Of the diffusion decoder."""
FRAMES, HEIGHT, WIDTH = 33, 64, 96
"""Of a stand-in's videos."""

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("autoregressive") / "checkpoints"
    write_standin([find_card(SMALL), find_card(LARGE)], folder, seed=0, layout="folder")
    return folder


@pytest.fixture
def here(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds `checkpoints` and the assets."""
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "COSMOS_NEMO_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run_here(here: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    door = _load(BASE)

    def run(*argv: str) -> Ended:
        capfd.readouterr()
        status = door.main(list(argv), environ={"COSMOS_NEMO_CACHE": ""})
        return Ended(status, *capfd.readouterr())

    return run


def _document(title: str) -> list[str]:
    [argv] = [list(c.argv) for c in commands.commands_of("001") if c.title.startswith(title)]
    return argv


def _manifest(video: Path) -> dict[str, Any]:
    return json.loads(video.with_suffix(".json").read_text())  # type: ignore[no-any-return]


def _made(run_here: Run, here: Path, name: str, *flags: str) -> numpy.ndarray:
    ended = run_here(*ONE, *flags, "--video_save_name", f"{name}.npy")
    assert ended.returncode == 0, ended.stderr
    return numpy.asarray(numpy.load(here / f"outputs/{name}.npy"))


def _far(ours: numpy.ndarray, theirs: numpy.ndarray) -> int:
    """Largest difference in levels."""
    assert ours.shape == theirs.shape
    return int(numpy.abs(ours.astype(int) - theirs.astype(int)).max())


def test_the_documents_command_runs(run_here: Run, here: Path) -> None:
    ended = run_here(*_document("example 1"))
    assert ended.returncode == 0, ended.stderr
    video = here / "outputs/autoregressive-4b.mp4"
    reader = imageio.get_reader(video)
    assert len([*reader.iter_data()]) == FRAMES and reader.get_meta_data()["fps"] == 25
    manifest = _manifest(video)
    assert manifest["model"] == SMALL
    assert manifest["request"]["top_p"] == 0.8 and manifest["request"]["num_input_frames"] == 9
    assert manifest["visual_input_sha256"] == file_digest(ROOT / CLIP)
    assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}
    assert set(manifest["stages"]) == {
        *("discrete_tokenizer", "token_generation", "diffusion_decoder", "tokenizer", "video_guard")
    }
    assert set(manifest["files"]) == {
        *("weights", "discrete_tokenizer", "diffusion_decoder", "tokenizer", "guardrail")
    }


def test_the_documents_eight_ranks_make_what_one_makes(run_here: Run, here: Path) -> None:
    argv = _document("example 2")
    [command] = [c for c in commands.commands_of("001") if c.title.startswith("example 2")]
    assert command.launcher[-1] == "--nproc_per_node=8" and argv[:2] == ["--num_gpus", "8"]
    places = [
        *("--checkpoint_dir", str(here / "checkpoints"), "--video_save_name", "v.npy"),
        *("--input_image_or_video_path", str(here / CLIP), "--video_save_folder"),
    ]
    ended = run_here(*argv, *QUICK, *places, "one", "--num_gpus", "1")
    assert ended.returncode == 0, ended.stderr
    ranks = launcher.wait_for(
        launcher.start_ranks(8, BASE, *argv, *QUICK, *places, str(here / "eight")), timeout=240
    )
    assert [one.status for one in ranks] == [0] * 8, ranks[0].err
    assert _manifest(here / "eight/v.npy")["plan"] == {"cfg": 1, "cp": 1, "tp": 8, "replicas": 1}
    assert _far(numpy.load(here / "eight/v.npy"), numpy.load(here / "one/v.npy")) <= 1


@pytest.mark.parametrize(
    ("num_ranks", "flags", "plan"),
    [
        (2, [], (1, 1, 2)),
        (2, ["--tensor_parallel", "1"], (2, 1, 1)),
        (3, [], (1, 3, 1)),
        (4, ["--tensor_parallel", "2"], (2, 1, 2)),
    ],
)
def test_any_number_of_ranks_makes_the_video_of_one(
    run_here: Run, here: Path, num_ranks: int, flags: list[str], plan: tuple[int, int, int]
) -> None:
    one = _made(run_here, here, "one", *QUICK)
    argv = [
        *QUICK,
        *("--checkpoint_dir", str(here / "checkpoints"), "--disable_guardrail"),
        *("--input_image_or_video_path", str(here / CLIP)),
        *("--video_save_folder", str(here / "many"), "--video_save_name", "v.npy"),
    ]
    ranks = launcher.wait_for(launcher.start_ranks(num_ranks, BASE, *argv, *flags), timeout=180)
    assert [rank.status for rank in ranks] == [0] * num_ranks, ranks[0].err
    manifest = _manifest(here / "many/v.npy")
    assert manifest["plan"] == {**dict(zip(("cfg", "cp", "tp"), plan, strict=True)), "replicas": 1}
    assert manifest["item"] == _manifest(here / "outputs/one.npy")["item"]
    assert _far(numpy.load(here / "many/v.npy"), one) <= 1


def test_a_batch_file_without_visual_inputs_as_the_documents_is_says_so(run_here: Run, here: Path) -> None:
    """The published one has prompts alone; the one here, which serves other documents, has both."""
    argv = _document("example 3")
    (here / "text2world.jsonl").write_text('{"prompt": "A red car."}\n{"prompt": "A blue ball."}\n')
    argv[argv.index("--batch_input_path") + 1] = "text2world.jsonl"
    ended = run_here(*argv)
    assert ended.returncode == 2
    assert 'it has no "visual_input"' in ended.stderr and "Traceback" not in ended.stderr
    assert not (here / "autoregressive-4b-batch").exists()


def test_the_documents_batch_runs_with_a_file_that_has_them(run_here: Run, here: Path) -> None:
    argv = _document("example 3")
    other = here / "other.mp4"
    shutil.copy(ROOT / CLIP, other)
    lines = [{"visual_input": CLIP}, {"visual_input": str(other), "prompt": "not read", "seed": 7}]
    (here / "base.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv[argv.index("--batch_input_path") + 1] = "base.jsonl"
    ended = run_here(*argv)
    assert ended.returncode == 0, ended.stderr
    folder = here / "autoregressive-4b-batch"
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["0.mp4", "1.mp4"]
    assert (
        _manifest(folder / "0.mp4")["request"]["seed"],
        _manifest(folder / "1.mp4")["request"]["seed"],
    ) == (
        0,
        7,
    )
    again = run_here(*argv)
    assert again.returncode == 0 and "0 videos made, 2 were there" in again.stdout


def test_tokens_drawn_together_are_those_drawn_alone(run_here: Run, here: Path) -> None:
    lines = [{"visual_input": CLIP, "seed": seed} for seed in (0, 1, 2)]
    lines.insert(1, {"visual_input": "gone.mp4"})
    (here / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = ["--batch_input_path", "b.jsonl", "--disable_guardrail", "--disable_diffusion_decoder"]
    for size in ("1", "2"):
        ended = run_here(*argv, "--batch_size", size, "--video_save_folder", f"of{size}")
        assert ended.returncode == 1, ended.stderr
        assert "gone.mp4 does not exist" in ended.stderr + ended.stdout
    seconds = [
        [
            _manifest(here / f"of{size}/{name}.mp4")["stages"]["token_generation"]["seconds"]
            for name in (0, 2, 3)
        ]
        for size in (1, 2)
    ]
    assert min(seconds[0]) > 0
    assert seconds[1][0] > 0 and seconds[1][1] == 0 and seconds[1][2] > 0
    found = [[imageio.mimread(here / f"of{size}/{name}.mp4") for name in (0, 2, 3)] for size in ("1", "2")]
    assert numpy.array_equal(numpy.array(found[0]), numpy.array(found[1]))
    assert not numpy.array_equal(numpy.array(found[0][0]), numpy.array(found[0][1]))


def test_flags_change_the_video(run_here: Run, here: Path) -> None:
    variants: dict[str, list[str]] = {
        "released": QUICK,
        "again": [*QUICK, "--temperature", "1", "--top_p", "0.8", "--seed", "0", "--guidance", "1.8"],
        "seeded": [*QUICK, "--seed", "1"],
        "greedy": [*QUICK, "--temperature", "0"],
        "few": [*QUICK, "--top_k", "2"],
        "one_frame": [*QUICK, "--num_input_frames", "1"],
        "tokenizer": ["--disable_diffusion_decoder"],
        "guided": [*QUICK, "--guidance", "3"],
        "steps": ["--num_steps", "3"],
        "res": [*QUICK, "--sampler", "RES"],
        "large": [*QUICK, "--ar_model_dir", LARGE],
    }
    made = {name: _made(run_here, here, name, *flags) for name, flags in variants.items()}
    assert all(video.shape == (FRAMES, HEIGHT, WIDTH, 3) for video in made.values())
    assert numpy.array_equal(made["released"], made.pop("again"))
    assert len({video.tobytes() for video in made.values()}) == len(made)


def test_an_image_is_gone_on_from(run_here: Run, here: Path) -> None:
    Image.new("RGB", (50, 40), (200, 30, 30)).save(here / "red.png")
    argv = ["--input_image_or_video_path", "red.png", "--disable_guardrail", "--video_save_name", "v.npy"]
    ended = run_here(*argv, "--input_type", "image")
    assert ended.returncode == 0, ended.stderr
    as_video = run_here(*argv)
    assert as_video.returncode == 2
    assert "red.png is an image, and --num_input_frames 9 needs a video" in as_video.stderr


def test_offloading_changes_nothing(run_here: Run, here: Path) -> None:
    resident = _made(run_here, here, "resident", *QUICK)
    parked = _made(run_here, here, "parked", *QUICK, "--offload", "all")
    assert numpy.array_equal(resident, parked)


def test_without_the_decoder_its_files_are_not_needed(run_here: Run, here: Path, checkpoints: Path) -> None:
    (here / "checkpoints").unlink()
    (here / "checkpoints").mkdir()
    for name in (SMALL, "Cosmos-Tokenize1-DV8x16x16-720p"):
        (here / "checkpoints" / name).symlink_to(checkpoints / name)
    ended = run_here(*ONE, "--disable_diffusion_decoder", "--video_save_name", "v.npy")
    assert ended.returncode == 0, ended.stderr
    assert set(_manifest(here / "outputs/v.npy")["stages"]) == {"discrete_tokenizer", "token_generation"}


def test_a_nano_model_makes_its_video_without_a_decoder_in_its_folder(
    run_here: Run, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("nano") / "checkpoints"
    write_standin([find_card(NANO)], folder, seed=0, layout="folder")
    model = ["--checkpoint_dir", str(folder), "--ar_model_dir", NANO]
    frames = ["--input_image_or_video_path", CLIP, "--video_save_name", "nano.npy"]
    ended = run_here(*model, *frames)
    assert ended.returncode == 0, ended.stderr
    video = numpy.load(here / "outputs/nano.npy")
    assert video.shape == (FRAMES, 128, 128, 3) and len(numpy.unique(video)) > 10
    ended = run_here(*model, *frames, "--num_steps", "3")
    assert ended.returncode == 2 and f"{NANO} comes without a diffusion decoder" in ended.stderr
    ended = run_here(*model, *frames, "--precision", "fp8")
    assert ended.returncode == 2 and f"this run of {NANO} has none. Leave it out" in ended.stderr
    ended = run_here(*model, *frames, "--dry_run")
    assert ended.returncode == 0 and "frames by the discrete tokenizer" in ended.stdout
    assert "diffusion decoder" not in ended.stdout


def test_a_missing_text_of_the_decoder_is_said_before_a_weight_is_read(
    run_here: Run, here: Path, checkpoints: Path
) -> None:
    (here / "checkpoints").unlink()
    shutil.copytree(checkpoints, here / "checkpoints")
    [aux] = (here / "checkpoints").rglob("aux_vars.pt")
    aux.unlink()
    ended = run_here(*ONE)
    assert ended.returncode == 2
    assert "has no aux_vars.pt" in ended.stderr and "--disable_diffusion_decoder" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--top_p", "0.5", "--top_k", "5"], "top_k"),
        (["--temperature", "-1"], "temperature"),
        (["--top_p", "1.5"], "top_p"),
        (["--num_input_frames", "5"], "--num_input_frames 5 must be 1 or 9"),
        (["--sampler", "RES-2mid"], "--sampler RES-2mid is none of the decoder's"),
        (["--ar_model_dir", "nowhere"], "--ar_model_dir nowhere is no model's name"),
        (["--checkpoint_dir", "nowhere"], "--checkpoint_dir nowhere is no folder"),
    ],
)
def test_what_cannot_be_exits_2_with_a_sentence(run_here: Run, flags: list[str], says: str) -> None:
    ended = run_here(*ONE, *flags)
    assert ended.returncode == 2, ended.stderr
    assert says in ended.stderr and "Traceback" not in ended.stderr


def test_a_dry_run_says_what_would_be_made(run_here: Run) -> None:
    ended = run_here(*ONE, "--dry_run", "--num_gpus", "4")
    assert ended.returncode == 0, ended.stderr
    for line in (
        "33 frames of 96 x 64 at 25 fps, seed 0",
        f"goes on from the last 9 frames of {CLIP}",
        "tokens 5 x 4 x 6: 48 given, 72 drawn at temperature 1, top-p 0.8",
        "frames by the diffusion decoder: EDM, 15 steps, guidance 1.8: 30 network calls",
        "tensor parallel 4",
    ):
        assert line in ended.stdout


def test_help_is_instant_and_names_every_released_flag() -> None:
    shown = help_of(BASE)
    released = (
        *("checkpoint_dir", "ar_model_dir", "input_type", "input_image_or_video_path", "batch_input_path"),
        *("num_input_frames", "temperature", "top_p", "seed", "num_gpus", "video_save_name"),
        *("video_save_folder", "disable_diffusion_decoder", "offload_guardrail_models"),
        *("offload_diffusion_decoder", "offload_ar_model", "offload_tokenizer", "disable_guardrail"),
    )
    assert [name for name in released if f"--{name}" not in shown] == []
    assert autoregressive.FLAG_NAMES["--nemo_checkpoint"] == "--ar_model_dir"


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_weights_with_nan_are_a_sentence_that_names_token_video_and_file(
    run_here: Run, here: Path, tmp_path: Path, num_ranks: int, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    damaged = tmp_path / "damaged"
    shutil.copytree(here / "checkpoints", damaged)
    path = damaged / SMALL / "model.pt"
    tensors = torch.load(path, weights_only=True)
    tensors["model.layers.1.feed_forward.w1.weight"][0, 0] = float("nan")
    torch.save(tensors, path)
    argv = [*ONE, "--checkpoint_dir", str(damaged), "--video_save_folder", str(here / "outputs")]
    if num_ranks == 1:
        status, said = (ended := run_here(*argv)).returncode, ended.stderr
    else:
        argv[1] = str(here / CLIP)
        ranks = launcher.wait_for(launcher.start_ranks(num_ranks, BASE, *argv), timeout=180)
        status, said = ranks[0].status, "".join(rank.err for rank in ranks)
        assert ranks[1].status == status
    assert status == 2, said
    assert "Traceback" not in said
    assert said.count("LogitsError: ") == 1
    assert "mp4 cannot be made: the network's logits for token 49 of 120 (latent frame 2, row 0, " in said
    assert "NaN or infinite in float32" in said
    assert f"the weights {damaged / SMALL} are damaged: download or convert them again" in said
    assert "mlp.linear_fc1.weight has 1 NaN or infinite values" in said + caplog.text
    assert not list((here / "outputs").glob("*.mp4"))


def test_a_converted_model_draws_the_same_video(run_here: Run, here: Path, tmp_path: Path) -> None:
    from cosmos_nemo.checkpoint.convert import convert

    decoder = "Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p"
    as_released = _made(run_here, here, "released", *QUICK)
    for name in (SMALL, decoder):
        convert(here / "checkpoints" / name, tmp_path / "nemo" / name, to="nemo")
        convert(tmp_path / "nemo" / name, tmp_path / "back" / name, to="predict1")
    shutil.copytree(here / "checkpoints", tmp_path / "mixed")
    for layout in ("nemo", "back"):
        for name in (SMALL, decoder):
            shutil.rmtree(tmp_path / "mixed" / name)
            shutil.copytree(tmp_path / layout / name, tmp_path / "mixed" / name)
        made = _made(run_here, here, layout, *QUICK, "--checkpoint_dir", str(tmp_path / "mixed"))
        assert numpy.array_equal(made, as_released)
