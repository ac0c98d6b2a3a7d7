"""`cosmos-nemo post-train` as a person types it, alone and under torchrun, up to the video."""

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch

from cosmos_nemo import launch
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.tools import main
from tests.doors.instant import help_of
from tests.parallel import launcher
from tests.parallel.train_worker import weights_in

NANO = "Cosmos-Nano-Text2World"
MODULE = ("-m", "cosmos_nemo.tools.main", "post-train")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 9 frames of 32 x 48, as prepare-data writes them."""
    folder = tmp_path_factory.mktemp("samples")
    generator = torch.Generator().manual_seed(0)
    for name in range(4):
        torch.save(torch.randn(16, 2, 4, 6, generator=generator), folder / f"{name}.video_latent.pth")
        torch.save(torch.randn(128, 64, generator=generator), folder / f"{name}.t5_text_embeddings.pth")
        torch.save(torch.ones(128), folder / f"{name}.t5_text_mask.pth")
        (folder / f"{name}.info.json").write_text(json.dumps({"fps": 24, "num_frames": 9}))
    return folder


def flags(samples: Path, log_dir: Path, *more: str, steps: int = 2) -> list[str]:
    return [
        *("--model", NANO, "--from_scratch", "--data_path", str(samples), "--log_dir", str(log_dir)),
        *("--max_steps", str(steps), "--global_batch_size", "2", "--learning_rate", "1e-3", *more),
    ]


def alone(*command: str) -> launcher.Ended:
    return ended(subprocess.Popen([sys.executable, *command], **_pipes()))  # type: ignore[call-overload]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "command.py"
    path.write_text("import sys\nfrom cosmos_nemo.tools.main import main\nsys.exit(main())\n")
    return path


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., launcher.Ended]:
    """A command's main in this process, which has torch and Megatron already."""

    def run(main: Callable[[Sequence[str]], int], *argv: str) -> launcher.Ended:
        capfd.readouterr()
        return launcher.Ended(main(argv), *capfd.readouterr())

    return run


def torchrun(command: Sequence[str]) -> "subprocess.Popen[str]":
    start = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    return subprocess.Popen([sys.executable, *start, *command], **_pipes())  # type: ignore[call-overload]


def ended(process: "subprocess.Popen[str]", *, timeout: float = 180) -> launcher.Ended:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return launcher.Ended(process.returncode, out, err)


def losses(log_dir: Path) -> list[float]:
    (path,) = log_dir.glob("default/*/losses.csv")
    with path.open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def checkpoint_in(log_dir: Path) -> Path:
    return max(log_dir.glob("default/*/checkpoints/epoch=*"), key=lambda path: int(path.name.split("=")[2]))


def wait_for_steps(log_dir: Path, process: "subprocess.Popen[str]", *, steps: int = 2) -> None:
    deadline = time.monotonic() + 120
    while not list(log_dir.glob("default/*/losses.csv")) or len(losses(log_dir)) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _pipes() -> dict[str, object]:
    return {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": launcher.clean_environment(),
    }


@pytest.fixture(scope="module")
def trained(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, launcher.Ended]:
    log_dir = tmp_path_factory.mktemp("alone")
    return log_dir, alone(*MODULE, *flags(samples, log_dir))


def test_help_waits_for_no_slow_library() -> None:
    found = help_of(*MODULE)
    for flag in ("--data_path", "--resume", "--tensor_parallel", "--dry_run"):
        assert flag in found


def test_alone_it_trains_and_says_once_what_it_wrote(trained: tuple[Path, launcher.Ended]) -> None:
    log_dir, found = trained
    assert found.status == 0, found.err
    path = checkpoint_in(log_dir)
    assert path.name == "epoch=1-step=2"
    assert len(losses(log_dir)) == 2
    assert "train: 100%" in found.err and "loss=" in found.err
    assert "Traceback" not in found.err
    assert (found.out + found.err).count(f"wrote {path}") == 1


def by_launcher(script: Path, *argv: str) -> launcher.Ended:
    """The two ranks' words together, and the higher status."""
    both = launcher.wait_for(launcher.start_ranks(2, script, "post-train", *argv), timeout=120)
    out, err = ("".join(getattr(one, stream) for one in both) for stream in ("out", "err"))
    return launcher.Ended(max(one.status for one in both), out, err)


@pytest.fixture
def two_ranks(request: pytest.FixtureRequest, script: Path) -> Callable[..., launcher.Ended]:
    if request.param == "torchrun":
        return lambda *argv: ended(torchrun([*MODULE, *argv]))
    return partial(by_launcher, script)


TWO_RANKS = pytest.mark.parametrize(
    "two_ranks", ["launcher", pytest.param("torchrun", marks=pytest.mark.slow)], indirect=True
)


@TWO_RANKS
@pytest.mark.parametrize("share", [(), ("--tensor_parallel", "2")])
def test_two_ranks_have_the_losses_of_one(
    two_ranks: Callable[..., launcher.Ended],
    samples: Path,
    trained: tuple[Path, launcher.Ended],
    tmp_path: Path,
    share: tuple[str, ...],
) -> None:
    found = two_ranks(*flags(samples, tmp_path / "log", *share))
    assert found.status == 0, found.err
    plan = "data parallel 1 x context parallel 1 x tensor parallel 2" if share else "data parallel 2"
    assert found.out.count(plan) == 1
    assert losses(tmp_path / "log") == pytest.approx(losses(trained[0]), rel=2e-6)
    from cosmos_nemo.catalog import find_card

    one, two = (
        weights_in(checkpoint_in(folder), find_card(NANO)) for folder in (trained[0], tmp_path / "log")
    )
    assert all(torch.allclose(two[name], weight, rtol=0, atol=1e-5) for name, weight in one.items())


def test_inference_makes_a_video_with_the_checkpoint(
    run_here: Callable[..., launcher.Ended],
    trained: tuple[Path, launcher.Ended],
    tmp_path: Path,
) -> None:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.cli import parse_general
    from cosmos_nemo.tools.standin import write_standin

    write_standin([find_card(NANO)], tmp_path / "assets", seed=0, layout="folder")
    path = checkpoint_in(trained[0])
    videos = []

    def general(argv: Sequence[str]) -> int:
        return launch.run(lambda: parse_general(argv), environ={"COSMOS_NEMO_CACHE": ""})

    for name, more in (("trained", ["--nemo_checkpoint", str(path)]), ("standin", [])):
        video = tmp_path / f"{name}.npy"
        found = run_here(
            general,
            *("--model", NANO, "--cosmos_assets_dir", str(tmp_path / "assets"), "--prompt", "A red ball."),
            *("--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "2"),
            *("--video_save_path", str(video), *more),
        )
        assert found.status == 0, found.err
        videos.append(numpy.load(video))
    assert videos[0].shape == (9, 32, 48, 3)
    assert not numpy.array_equal(*videos)
    manifest = json.loads((tmp_path / "trained.json").read_text())
    assert str(path) in json.dumps(manifest["files"]["weights"])


def test_a_video2world_is_trained_from_a_text2world_and_goes_on_from_an_image(
    run_here: Callable[..., launcher.Ended],
    samples: Path,
    trained: tuple[Path, launcher.Ended],
    tmp_path: Path,
) -> None:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.cli import parse_general
    from cosmos_nemo.tools.standin import write_standin

    model = "Cosmos-Nano-Video2World"
    found = run_here(
        main.main,
        *("post-train", "--model", model, "--nemo_checkpoint", str(checkpoint_in(trained[0]))),
        *("--data_path", str(samples), "--log_dir", str(tmp_path / "log"), "--max_steps", "2"),
    )
    assert found.status == 0, found.err
    write_standin([find_card(NANO)], tmp_path / "assets", seed=0, layout="folder")
    image, video = tmp_path / "image.npy", tmp_path / "made.npy"
    numpy.save(image, numpy.full((1, 32, 48, 3), 200, numpy.uint8))
    path = checkpoint_in(tmp_path / "log")
    argv = [
        *("--model", model, "--cosmos_assets_dir", str(tmp_path / "assets"), "--prompt", "A red ball."),
        *("--nemo_checkpoint", str(path), "--conditioned_image_or_video_path", str(image)),
        *("--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "2"),
        *("--video_save_path", str(video)),
    ]
    found = run_here(
        lambda argv: launch.run(lambda: parse_general(argv), environ={"COSMOS_NEMO_CACHE": ""}), *argv
    )
    assert found.status == 0, found.err
    assert numpy.load(video).shape == (9, 32, 48, 3)


def test_sigterm_saves_ends_with_143_and_resume_goes_on(
    run_here: Callable[..., launcher.Ended], samples: Path, tmp_path: Path
) -> None:
    command = [sys.executable, *MODULE, *flags(samples, tmp_path, steps=100_000)]
    process = subprocess.Popen(command, **_pipes())  # type: ignore[call-overload]
    wait_for_steps(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    found = ended(process)
    assert found.status == 143, found.err
    done = len(losses(tmp_path))
    path = checkpoint_in(tmp_path)
    assert path.name.endswith(f"step={done}") and (path / "training_state" / "state.json").is_file()
    assert f"stopped after step {done}; the same command with --resume goes on" in found.out
    before = losses(tmp_path)
    again = run_here(main.main, "post-train", *flags(samples, tmp_path, "--resume", steps=done + 2))
    assert again.status == 0, again.err
    assert losses(tmp_path)[:done] == before and len(losses(tmp_path)) == done + 2
    assert checkpoint_in(tmp_path).name.endswith(f"step={done + 2}")


def test_sigterm_to_one_of_two_ranks_saves_and_ends_both(script: Path, samples: Path, tmp_path: Path) -> None:
    """As scancel --signal or a preempted node does it: not all ranks hear of it at the same step."""
    log_dir = tmp_path / "log"
    ranks = launcher.start_ranks(2, script, "post-train", *flags(samples, log_dir, steps=100_000))
    wait_for_steps(log_dir, ranks[0].process)  # type: ignore[arg-type]
    ranks[1].process.send_signal(signal.SIGTERM)
    found = launcher.wait_for(ranks, timeout=120)
    assert [one.status for one in found] == [143, 143], found[0].err
    assert checkpoint_in(log_dir).name.endswith(f"step={len(losses(log_dir))}")


@TWO_RANKS
def test_a_bad_flag_is_told_once(
    two_ranks: Callable[..., launcher.Ended], samples: Path, tmp_path: Path
) -> None:
    found = two_ranks(*flags(samples, tmp_path / "log", "--tensor_parallel", "3"))
    assert found.status != 0
    assert found.err.count("TrainingError: --tensor_parallel 3 does not divide") == 1
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("model", ["Cosmos-Nano-Predict2-Video2World", "Cosmos-Predict2-2B-Video2World"])
def test_a_predict2_learns_from_videos_and_goes_on_from_an_image(
    run_here: Callable[..., launcher.Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
) -> None:
    """prepare-data, post-train from the stand-in's weights, both doors."""
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.cli import parse_general, parse_video2world
    from cosmos_nemo.tools.standin import write_standin

    monkeypatch.chdir(tmp_path)
    write_standin([find_card(model)], Path("checkpoints"), seed=0, layout="folder")
    Path("videos").mkdir()
    dice = numpy.random.RandomState(0)
    numpy.save("videos/a.npy", dice.randint(0, 255, (12, 32, 48, 3), dtype=numpy.uint8))
    numpy.save("image.npy", numpy.full((1, 32, 48, 3), 200, numpy.uint8))
    size = ("--height", "32", "--width", "48")
    here = ("--model", model, "--cosmos_assets_dir", "checkpoints")
    found = run_here(
        main.main,
        *("prepare-data", *here, *size, "--dataset_path", "videos", "--output_path", "samples"),
        *("--num_frames", "9", "--num_chunks", "4", "--prompt", "A red ball."),
    )
    assert found.status == 0, found.err
    found = run_here(
        main.main,
        *("post-train", *here, "--data_path", "samples", "--log_dir", "log", "--max_steps", "3"),
        *("--global_batch_size", "4", "--micro_batch_size", "2", "--learning_rate", "1e-3"),
    )
    assert found.status == 0, found.err
    assert len(losses(Path("log"))) == 3
    path = str(checkpoint_in(Path("log")))

    def made(parse: Callable[..., Invocation], *argv: str) -> numpy.ndarray:
        def door(words: Sequence[str]) -> int:
            return launch.run(lambda: parse(words), environ={"COSMOS_NEMO_CACHE": ""})

        found = run_here(
            door,
            *("--model", model, "--prompt", "A red ball.", *size, "--num_video_frames", "9"),
            *("--num_steps", "2", "--seed", "1", "--disable_guardrail", *argv),
        )
        assert found.status == 0, found.err
        return numpy.load("made.npy")

    general = (*here, "--conditioned_image_or_video_path", "image.npy", "--video_save_path", "made.npy")
    video2world = (
        *("--checkpoint_dir", "checkpoints", "--input_image_or_video_path", "image.npy"),
        *("--video_save_folder", ".", "--video_save_name", "made.npy", "--disable_prompt_upsampler"),
    )
    trained = made(parse_general, *general, "--nemo_checkpoint", path)
    assert trained.shape == (9, 32, 48, 3)
    assert not numpy.array_equal(trained, made(parse_general, *general))
    again = made(parse_video2world, *video2world, "--diffusion_transformer_dir", path)
    assert numpy.array_equal(trained, again)
