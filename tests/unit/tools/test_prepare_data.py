import os
import subprocess
import sys
from pathlib import Path

import imageio
import numpy
import pytest
import torch

from cosmos_nemo.catalog import find_card
from cosmos_nemo.checkpoint.locate import locate, tokenizer_of
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.video_reading import read_frames
from cosmos_nemo.tools.main import main
from cosmos_nemo.tools.standin import write_standin
from cosmos_nemo.training.prepared_folder import PreparedFolder

ROOT = Path(__file__).parents[3]
PREDICT2 = find_card("Cosmos-Predict2-2B-Video2World")
SMALL, NANO = find_card("Cosmos-1.0-Diffusion-7B-Text2World"), find_card("Cosmos-Nano-Text2World")


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin") / "nano"
    write_standin([NANO], folder, seed=0, layout="folder")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mp4 files of 33 frames, one of them larger than the model's 128 x 128."""
    folder = tmp_path_factory.mktemp("videos")
    for name, height, width in (("a.mp4", 128, 128), ("B.MP4", 96, 160)):
        rows, columns = numpy.mgrid[:height, :width]
        with imageio.get_writer(
            folder / name, format="FFMPEG", mode="I", fps=24, macro_block_size=1, output_params=["-f", "mp4"]
        ) as writer:
            for frame in range(33):
                grey = 127 + 120 * numpy.sin((rows + 2 * columns + 5 * frame) / 20)
                writer.append_data(numpy.stack([grey, 255 - grey, grey / 2], axis=2).astype(numpy.uint8))
    (folder / "a.txt").write_text("waves")
    return folder


def run(assets: Path, videos: Path, out: Path, *more: str, model: str = NANO.name) -> int:
    flags = {"model": model, "cosmos_assets_dir": assets, "dataset_path": videos, "output_path": out}
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return main(["prepare-data", *pairs, *more])


def test_videos_become_samples_that_the_tokenizer_made_of_their_frames(
    assets: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(assets, videos, out, "--prompt", "A video of sks.", "--device", "cpu") == 0
    assert capsys.readouterr().out.endswith(f"{out}: 2 samples, 2 of them made now\n")
    data = PreparedFolder(out)
    data.check(NANO)
    assert data.latent_shape == (16, 5, 16, 16)
    folder = locate(tokenizer_of(NANO), assets_dir=assets)
    assert folder is not None
    with Tokenizer(shape=NANO.tokenizer, folder=folder, device=torch.device("cpu")) as tokenizer:
        frames_THWC = torch.from_numpy(numpy.stack([*read_frames(videos / "a.mp4")]))
        expected = tokenizer.encode(frames_THWC.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
    torch.testing.assert_close(data.batch([1]).latent_BCTHW, expected, rtol=0, atol=1e-5)

    assert run(assets, videos, out, "--prompt", "A video of sks.", "--device", "cpu") == 0
    assert capsys.readouterr().out.endswith(f"{out}: 2 samples, 0 of them made now\n")
    assert run(assets, videos, out, "--prompt", "Another.", "--device", "cpu") == 2
    assert "prepared with other settings: B.MP4" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_made_and_writes_nothing(
    assets: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--prompt", "x", "--dry_run", "--num_frames", "9", "--num_chunks", "4", "--device", "cpu")
    assert run(assets, videos, tmp_path / "out", *more) == 0
    printed = capsys.readouterr().out
    for part in (
        "B.MP4: 33 frames of 160 x 96 at 24 fps, 4 windows",
        "8 samples of 9 frames of 128 x 128, 2 different captions",
        "8 of them to make, 0.5 MiB",
        f"tokenizer: {assets}",
    ):
        assert part in printed
    assert os.listdir(tmp_path) == []


def test_a_dry_run_needs_no_models(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--prompt", "x", "--dry_run", "--num_frames", "9")
    assert run(tmp_path, videos, tmp_path / "out", *more, model=SMALL.name) == 0
    printed = capsys.readouterr().out
    assert "10 samples of 9 frames of 1280 x 704" in printed
    assert printed.count("not here; a run would look for it on the hub") == 2


def test_a_card_json_beside_the_weights_tells_the_text_width(videos: Path, tmp_path: Path) -> None:
    write_standin([SMALL], tmp_path / "small", seed=0, layout="folder")
    more = ("--prompt", "x", "--num_frames", "9", "--height", "32", "--width", "48", "--num_chunks", "1")
    assert run(tmp_path / "small", videos, tmp_path / "out", *more, model=SMALL.name) == 0
    assert PreparedFolder(tmp_path / "out").text_shape == (512, 64)


@pytest.mark.parametrize("name", [PREDICT2.name, f"{PREDICT2.name}-480p-10fps"])
def test_videos_become_samples_of_predict2(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    card = find_card(name)
    write_standin([card], tmp_path / "two", seed=0, layout="folder")
    more = ("--prompt", "x", "--num_frames", "9", "--height", "32", "--width", "48", "--num_chunks", "2")
    assert run(tmp_path / "two", videos, tmp_path / "out", *more, model=name) == 0
    data = PreparedFolder(tmp_path / "out")
    assert (len(data), data.latent_shape, data.text_shape) == (4, (16, 3, 4, 6), (512, 64))
    capsys.readouterr()
    assert (
        run(tmp_path / "two", videos, tmp_path / "new", "--prompt", "x", "--num_frames", "8", model=name) == 2
    )
    assert "it takes 4k+1 frames from 5 to 121" in capsys.readouterr().err
    short = run(tmp_path / "two", videos, tmp_path / "new", "--prompt", "x", model=name)
    assert short == 2 and f"has {card.video.num_frames} frames; the longest" in capsys.readouterr().err


def test_what_a_person_can_mend_is_told_in_one_line(
    assets: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        ((), "B.MP4 has no caption"),
        (("--prompt", "x", "--num_frames", "10"), "--num_frames 10"),
        (("--prompt", "x", "--height", "100"), "--height 100"),
        (("--prompt", "x", "--tokenizer_dir", "nowhere"), "--tokenizer_dir nowhere does not exist"),
    ):
        assert run(assets, videos, tmp_path / "out", *more) == 2
        error = capsys.readouterr().err
        assert error.startswith("cosmos-nemo prepare-data: ") and message in error and error.count("\n") == 1
    assert run(assets, videos, tmp_path / "out", "--prompt", "x", model="nope") == 2
    assert run(assets, tmp_path / "none", tmp_path / "out", "--prompt", "x") == 2
    assert not (tmp_path / "out").exists()


def test_an_unwritable_output_is_told(
    assets: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    more = ("--prompt", "x", "--num_frames", "9")
    assert run(assets, videos, tmp_path / "file" / "out", *more) == 1
    assert f"{tmp_path / 'file' / 'out'}: " in capsys.readouterr().err
    assert run(assets, videos, tmp_path / "file", *more) == 2


def test_an_interrupt_has_its_own_status(
    assets: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Tokenizer, video: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "encode", interrupted)
    assert run(assets, videos, tmp_path / "out", "--prompt", "x", "--num_frames", "9") == 130


def test_help_lists_the_published_flags() -> None:
    command = [sys.executable, "-m", "cosmos_nemo.tools.main", "prepare-data", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    for flag in ("dataset_path", "output_path", "prompt", "num_chunks", "height", "width", "tokenizer_dir"):
        assert f"--{flag}" in done.stdout


def test_an_interpolators_clips_have_its_own_length_without_a_flag(
    assets: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "Cosmos-Nano-WorldInterpolator"
    more = ("--prompt", "x", "--num_chunks", "1", "--device", "cpu")
    assert run(assets, videos, tmp_path / "out", *more, model=model) == 0
    assert "2 samples of 10 frames of 128 x 128" in capsys.readouterr().out
    data = PreparedFolder(tmp_path / "out")
    data.check(find_card(model))
    assert data.latent_shape == (16, 3, 16, 16)
