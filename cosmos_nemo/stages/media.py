"""Writing a video and what belongs beside it, whole or not at all."""

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from cosmos_nemo.request import RequestError

_QUALITY = 5
"""imageio's 0..10; the released scripts write with 5."""


def check_writable(path: Path) -> None:
    """RequestError unless a video can be written at `path`; writes nothing. Before any weight is read."""
    if path.is_dir():
        raise RequestError(f"--video_save_path {path} is a folder. Pass {path / 'video.mp4'}.")
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        # Not os.access, which tells root that it may write anywhere.
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise RequestError(
            f"--video_save_path {path} cannot be written: in {existing}, {error.strerror or error}. "
            "Choose a folder that you may write to."
        ) from None
    if path.suffix.lower() == ".mp4":
        _check_encoder(path)


def write_video(
    frames_THWC: Tensor, path: Path, *, fps: int, prompt: str, manifest: Mapping[str, Any]
) -> None:
    """Writes `path` (.mp4 by ffmpeg, or .npy), its prompt as .txt, its manifest as .json; makes the folder.

    frames: uint8 0..255. All three appear under their names only when all are complete, the video last.
    OSError if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    write_frames = _write_npy if path.suffix.lower() == ".npy" else _write_mp4
    with _renamed_together() as temporary:
        temporary(path.with_suffix(".txt")).write_text(prompt, encoding="utf-8")
        temporary(path.with_suffix(".json")).write_text(text, encoding="utf-8")
        write_frames(frames_THWC, temporary(path), fps)


@contextmanager
def _renamed_together() -> Iterator[Callable[[Path], Path]]:
    """Gives temporary names, which become the real ones at the end; an interrupt leaves nothing behind."""
    names: dict[Path, Path] = {}

    def temporary(path: Path) -> Path:
        names[path] = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
        return names[path]

    try:
        yield temporary
        for path, written in names.items():
            os.replace(written, path)
    finally:
        for written in names.values():
            written.unlink(missing_ok=True)


def _write_mp4(frames_THWC: Tensor, path: Path, fps: int) -> None:
    import imageio

    writer = imageio.get_writer(
        path,
        format="FFMPEG",
        mode="I",
        fps=fps,
        quality=_QUALITY,
        macro_block_size=1,
        output_params=["-f", "mp4"],
    )
    with writer:
        for frame_HWC in frames_THWC:
            writer.append_data(frame_HWC.numpy())
    _check_written(path, num_frames=len(frames_THWC))


def _check_written(path: Path, *, num_frames: int) -> None:
    """imageio does not tell when ffmpeg fails at the end of a file, as it does on a full disk."""
    import imageio_ffmpeg

    try:
        found = imageio_ffmpeg.count_frames_and_secs(str(path))[0]
    except RuntimeError:
        found = 0
    if found != num_frames:
        raise OSError(f"ffmpeg wrote {found} of {num_frames} frames: is the disk full?")


def _write_npy(frames_THWC: Tensor, path: Path, fps: int) -> None:
    import numpy

    with path.open("wb") as file:
        numpy.save(file, frames_THWC.numpy())


def _check_encoder(path: Path) -> None:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise RequestError(
            f"--video_save_path {path} needs ffmpeg, which is not here. Install imageio-ffmpeg, or pass "
            "a path that ends in .npy to get the frames as an array."
        ) from None
