import argparse
import subprocess
import sys
from pathlib import Path

import imageio
import numpy
import pytest
from PIL import Image

from cosmos_nemo.tools import sheet

FRAMES = (numpy.arange(9)[:, None, None, None] * 20 + numpy.zeros((9, 32, 48, 3))).astype(numpy.uint8)


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    sheet.add_arguments(parser)
    return sheet.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    numpy.save(tmp_path / "a.npy", FRAMES)
    with imageio.get_writer(tmp_path / "b.mp4", format="FFMPEG", mode="I", macro_block_size=1) as writer:
        for frame in FRAMES:
            writer.append_data(frame)
    return [tmp_path / "a.npy", tmp_path / "b.mp4"]


def test_the_picture_shows_first_and_last_frames_of_every_video(videos: list[Path], tmp_path: Path) -> None:
    assert run(*videos, tmp_path / "new" / "out.png", "--frames", 3) == 0
    picture = numpy.asarray(Image.open(tmp_path / "new" / "out.png")).astype(int)
    for row in range(2):
        line = picture[12 + 20 + 16 + row * (20 + 32 + 12)]
        assert line[[12 + 24, 12 + 76, 12 + 128], 0] == pytest.approx([0, 80, 160], abs=6)


def test_the_prompt_beside_a_video_takes_the_place_of_its_name(videos: list[Path], tmp_path: Path) -> None:
    assert run(videos[0], tmp_path / "name.png") == 0
    videos[0].with_suffix(".txt").write_text("ein Bär im Wald")
    assert run(videos[0], tmp_path / "prompt.png") == 0
    name, prompt = (numpy.asarray(Image.open(tmp_path / f"{what}.png")) for what in ("name", "prompt"))
    assert not numpy.array_equal(name[:32], prompt[:32]) and numpy.array_equal(name[32:], prompt[32:])


def test_a_forgotten_picture_name_does_not_overwrite_a_video(
    videos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = videos[1].read_bytes()
    assert run(*videos) == 2
    assert "must end in .png" in capsys.readouterr().err
    assert videos[1].read_bytes() == before


def test_what_cannot_be_shown_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "missing.mp4", tmp_path / "out.png") == 2
    assert "missing.mp4 does not exist" in capsys.readouterr().err
    numpy.save(tmp_path / "a.npy", FRAMES)
    assert run(tmp_path / "a.npy", tmp_path / "out.png", "--frames", 0) == 2
    assert "--frames 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "a.npy", tmp_path / "file" / "out.png") == 1
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("module", ["sheet", "prepare_data"])
def test_help_waits_for_no_slow_library(module: str) -> None:
    program = f"import cosmos_nemo.tools.{module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "PIL", "imageio", "transformers"} & set(done.stdout.split())
