import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import imageio
import numpy
import pytest
import torch
from PIL import Image

from cosmos_nemo.request import RequestError
from cosmos_nemo.stages import media
from cosmos_nemo.stages.media import (
    check_writable,
    file_digest,
    remove_leftovers,
    write_blocked,
    write_video,
)

FRAMES = (torch.arange(9)[:, None, None, None] * 20 + torch.zeros(9, 32, 48, 3)).to(torch.uint8)


def test_an_mp4_has_the_frames_the_size_and_the_rate(tmp_path: Path) -> None:
    write_video(FRAMES, tmp_path / "a.mp4", fps=12, prompt="x", manifest={})
    reader = imageio.get_reader(tmp_path / "a.mp4")
    frames = numpy.stack([*reader.iter_data()])
    assert frames.shape == (9, 32, 48, 3)
    assert reader.get_meta_data()["fps"] == 12
    assert numpy.abs(frames.astype(int).mean(axis=(1, 2, 3)) - numpy.arange(9) * 20).max() < 4


def test_prompt_and_manifest_lie_beside_the_video(tmp_path: Path) -> None:
    write_video(FRAMES, tmp_path / "a.mp4", fps=24, prompt="ein Bär", manifest={"seed": 1})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ein Bär"
    digest = hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "a.json").read_text()) == {"seed": 1, "video_sha256": digest}
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.mp4", "a.txt"]


def test_npy_holds_the_exact_frames(tmp_path: Path) -> None:
    write_video(FRAMES, tmp_path / "a.npy", fps=24, prompt="", manifest={})
    assert numpy.array_equal(numpy.load(tmp_path / "a.npy"), FRAMES.numpy())


@pytest.mark.parametrize(("name", "format_"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")])
def test_a_single_frame_is_written_as_an_image_of_the_kind_that_its_name_says(
    tmp_path: Path, name: str, format_: str
) -> None:
    columns = torch.linspace(0, 255, 48).to(torch.uint8)
    frame_THWC = torch.stack([columns, columns.flip(0), columns // 2], dim=1).expand(1, 32, 48, 3)
    path = tmp_path / name
    write_video(frame_THWC, path, fps=1, prompt="x", manifest={"seed": 1})
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == (format_, "RGB", (48, 32))
        difference = numpy.abs(numpy.asarray(image).astype(int) - frame_THWC[0].numpy())
    assert difference.max() == 0 if format_ == "PNG" else 0 < difference.mean() < 4
    assert json.loads((tmp_path / "a.json").read_text()) == {"seed": 1, "image_sha256": file_digest(path)}
    assert (tmp_path / "a.txt").read_text() == "x"
    assert len(os.listdir(tmp_path)) == 3


def test_more_frames_than_one_are_no_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many values"):
        write_video(FRAMES, tmp_path / "a.png", fps=1, prompt="x", manifest={})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".mp4", ".npy", ".json"])
def test_what_a_killed_process_left_of_any_kind_goes(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f".a.0123abcd.part{suffix}").write_bytes(b"half")
    (tmp_path / f".b.0123abcd.part{suffix}").write_bytes(b"another's")
    remove_leftovers(tmp_path / "a.png")
    assert os.listdir(tmp_path) == [f".b.0123abcd.part{suffix}"]


def test_a_folder_in_an_images_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RequestError, match=r"a\.png is a folder\. Pass .*a\.png/image\.jpg"):
        check_writable(tmp_path / "a.png")


def test_an_interrupt_leaves_what_was_there_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(FRAMES, tmp_path / "a.mp4", fps=24, prompt="old", manifest={"seed": 1})

    def interrupted(frames: object, path: Path, fps: int) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(media, "_write_mp4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_video(FRAMES, tmp_path / "a.mp4", fps=24, prompt="new", manifest={"seed": 2})
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.mp4", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert json.loads((tmp_path / "a.json").read_text())["seed"] == 1


_DIES = """
import os, signal, sys
from pathlib import Path
import torch
from cosmos_nemo.stages import media

def die(frames, path, fps):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

media._write_npy = die
frames = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
media.write_video(frames, Path(sys.argv[1]), fps=1, prompt="", manifest={})
"""


def killed_while_writing(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _DIES, str(path)], timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_goes_with_the_next_write_of_the_same_video(tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "1.npy")
    assert len(os.listdir(tmp_path)) == 3
    for other in ("0.npy", "11.npy"):
        write_video(FRAMES, tmp_path / other, fps=24, prompt="", manifest={})
    write_blocked(tmp_path / "0.npy", manifest={})
    assert len([name for name in os.listdir(tmp_path) if name.startswith(".1.")]) == 3
    write_video(FRAMES, tmp_path / "1.npy", fps=24, prompt="", manifest={})
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_what_a_killed_writer_left_can_be_removed_without_a_write(tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "v.1.npy")
    (tmp_path / ".v.1.0123abcd.part.own").mkdir()
    (tmp_path / ".v.1.note.part.txt").write_text("a person's own")
    (tmp_path / ".v.1.blocked.0123abcd.part.json").write_text("half")
    remove_leftovers(tmp_path / "v.npy")
    assert len(os.listdir(tmp_path)) == 6
    remove_leftovers(tmp_path / "v.1.npy")
    assert sorted(os.listdir(tmp_path)) == [".v.1.0123abcd.part.own", ".v.1.note.part.txt"]
    remove_leftovers(tmp_path / "nowhere" / "v.npy")
    assert not (tmp_path / "nowhere").exists()


def test_the_files_of_a_living_writer_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs may write the same video: neither takes the other's file for a dead one's."""
    path, write = tmp_path / "0.npy", media._write_npy

    def meanwhile(frames: torch.Tensor, part: Path, fps: int) -> None:
        monkeypatch.setattr(media, "_write_npy", write)
        before = set(os.listdir(tmp_path))
        remove_leftovers(path)
        assert set(os.listdir(tmp_path)) == before and len(before) == 3
        write_video(frames + 1, path, fps=fps, prompt="the other's", manifest={})
        write(frames, part, fps)

    monkeypatch.setattr(media, "_write_npy", meanwhile)
    write_video(FRAMES, path, fps=24, prompt="mine", manifest={})
    assert (tmp_path / "0.txt").read_text() == "mine"
    assert numpy.array_equal(numpy.load(path), FRAMES.numpy())
    assert sorted(os.listdir(tmp_path)) == ["0.json", "0.npy", "0.txt"]


def test_without_locks_nothing_is_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".0.0123abcd.part.mp4").write_bytes(b"half")

    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    remove_leftovers(tmp_path / "0.mp4")
    assert os.listdir(tmp_path) == [".0.0123abcd.part.mp4"]


def test_a_video_that_ffmpeg_could_not_finish_is_an_error_and_not_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = media._check_written

    def cut_short(path: Path, *, num_frames: int) -> None:
        path.write_bytes(path.read_bytes()[:-200])
        checked(path, num_frames=num_frames)

    monkeypatch.setattr(media, "_check_written", cut_short)
    with pytest.raises(OSError, match="ffmpeg wrote 0 of 9 frames"):
        write_video(FRAMES, tmp_path / "a.mp4", fps=24, prompt="", manifest={})
    assert os.listdir(tmp_path) == []


def test_checking_makes_and_leaves_nothing_and_several_may_do_it_at_once(tmp_path: Path) -> None:
    for _ in range(3):
        check_writable(tmp_path / "deep" / "er" / "a.mp4")
    assert os.listdir(tmp_path) == []


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        check_writable(tmp_path / "a.mp4")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"--video_save_path .* cannot be written"):
        check_writable(tmp_path / "file" / "a.mp4")
