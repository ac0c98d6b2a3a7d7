import fcntl
import json
import os
import threading
from pathlib import Path

import numpy
import pytest
import torch

from cosmos_nemo.stages.media import blocked_path, file_digest, write_blocked, write_video
from cosmos_nemo.stages.records import Past, past_lines, past_of, resume

FRAMES = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)


def write(path: Path, *, item: str, value: int = 0) -> None:
    write_video(FRAMES + value, path, fps=24, prompt=item, manifest={"item": item})


def test_a_video_is_made_only_for_the_very_item(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    assert past_of(path, "a") is Past.OPEN
    write(path, item="a")
    assert past_of(path, "a") is Past.MADE
    assert past_of(path, "b") is Past.OTHER


@pytest.mark.parametrize(
    ("damage", "past"),
    [
        *(("truncated", Past.OPEN), ("removed", Past.OPEN), ("replaced", Past.OPEN)),
        *(("no manifest", Past.OTHER), ("half a manifest", Past.OTHER)),
    ],
)
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: str, past: Past) -> None:
    path, manifest = tmp_path / "0.npy", tmp_path / "0.json"
    write(path, item="a")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "removed":
        path.unlink()
    elif damage == "replaced":
        numpy.save(path, (FRAMES + 1).numpy())
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:-9])
    assert past_of(path, "a") is past and past.is_open


def test_only_what_is_made_or_blocked_is_not_made() -> None:
    assert [past for past in Past if not past.is_open] == [Past.MADE, Past.BLOCKED]


@pytest.mark.parametrize("now", [None, "", "a cat, se", "a\r\nb"])
def test_the_prompt_of_a_finished_video_is_restored_from_its_manifest(
    tmp_path: Path, now: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path, prompt = tmp_path / "0.npy", tmp_path / "0.txt"
    text = "a\nb" if now and "\r" in now else "a cat, seen at length"
    write_video(FRAMES, path, fps=24, prompt=text, manifest={"item": "a", "prompt": text})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    if now is None:
        prompt.unlink()
    else:
        prompt.write_bytes(now.encode())
    assert past_of(path, "a") is Past.MADE
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} != before, "looking changes nothing"
    assert resume(path, "a") is Past.MADE
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert "0.txt" in caplog.text and "0.json" in caplog.text
    caplog.clear()
    mtime = prompt.stat().st_mtime_ns
    assert resume(path, "a") is Past.MADE
    assert prompt.stat().st_mtime_ns == mtime and not caplog.records


def test_the_prompt_of_another_video_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    write_video(FRAMES, path, fps=24, prompt="x", manifest={"item": "a", "prompt": "x"})
    (tmp_path / "0.txt").write_text("a person's note")
    assert resume(path, "b") is Past.OTHER
    assert (tmp_path / "0.txt").read_text() == "a person's note"


def test_a_manifest_without_a_prompt_restores_none(tmp_path: Path) -> None:
    write(tmp_path / "0.npy", item="a")
    (tmp_path / "0.txt").unlink()
    assert resume(tmp_path / "0.npy", "a") is Past.MADE
    assert not (tmp_path / "0.txt").exists()


def test_resuming_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    (tmp_path / ".0.0123abcd.part.mp4").write_bytes(b"half")
    (tmp_path / ".1.0123abcd.part.mp4").write_bytes(b"half")
    assert resume(tmp_path / "0.mp4", "a") is Past.OPEN
    assert [p.name for p in tmp_path.iterdir()] == [".1.0123abcd.part.mp4"]


def test_what_is_there_and_what_will_be_replaced_is_told_in_a_line_each() -> None:
    pasts = [Past.MADE, Past.OTHER, Past.OPEN, Past.OTHER, Past.BLOCKED]
    assert past_lines(pasts, Path("out")) == [
        "1 of 5 videos are there already",
        "2 of the 5 videos in out are of other requests and will be replaced",
    ]
    assert past_lines([Past.OPEN], Path("out")) == []
    assert past_lines([Past.MADE, Past.OTHER], None, made="image") == [
        "1 of 2 images are there already",
        "1 of the 2 images are of other requests and will be replaced",
    ]


def test_an_image_is_found_again_until_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    write_video(FRAMES[:1], path, fps=1, prompt="a", manifest={"item": "a"})
    assert past_of(path, "a") is Past.MADE
    path.write_bytes(path.read_bytes()[:-1])
    assert past_of(path, "a") is Past.OPEN


def test_a_blocked_item_is_remembered_and_an_older_video_stays(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    write(path, item="old")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write_blocked(path, manifest={"item": "a"})
    assert past_of(path, "a") is Past.BLOCKED
    assert past_of(path, "old") is Past.MADE
    assert past_of(path, "new") is Past.OTHER
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p != blocked_path(path)} == before


def test_a_video_made_later_takes_the_place_of_the_blocked_one(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    write_blocked(path, manifest={"item": "a"})
    write(path, item="b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.json", "0.npy", "0.txt"]


def test_the_manifest_has_the_digest_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "0.npy", item="a")
    assert json.loads((tmp_path / "0.json").read_text())["video_sha256"] == file_digest(tmp_path / "0.npy")


def test_files_take_their_names_while_no_other_process_holds_the_folder(tmp_path: Path) -> None:
    """So that the three files of two runs that write one name never mix."""
    path = tmp_path / "0.npy"
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    writer = threading.Thread(target=lambda: write(path, item="a"))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    os.close(held)
    writer.join(20)
    assert past_of(path, "a") is Past.MADE


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(tmp_path / "0.npy", item="a")
    assert past_of(tmp_path / "0.npy", "a") is Past.MADE
