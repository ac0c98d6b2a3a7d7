"""Writing a video and what belongs beside it, whole or not at all."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cosmos_nemo.request import RequestError

_QUALITY = 5
"""imageio's 0..10; the released scripts write with 5."""


def check_writable(path: Path) -> None:
    """RequestError unless a video can be written at `path`; makes its folder. Before any weight is read."""
    if path.is_dir():
        raise RequestError(f"--video_save_path {path} is a folder. Pass {path / 'video.mp4'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path.with_name(f"{path.name}.probe"), lambda probe: probe.write_bytes(b""))
        path.with_name(f"{path.name}.probe").unlink()
    except OSError as error:
        raise RequestError(
            f"--video_save_path {path} cannot be written ({error.strerror or error}). "
            "Choose a folder you may write to."
        ) from None
    if path.suffix.lower() == ".mp4":
        _check_encoder(path)


def write_video(
    frames_THWC: Tensor, path: Path, *, fps: int, prompt: str, manifest: Mapping[str, Any]
) -> None:
    """Writes `path` (.mp4 by ffmpeg, or .npy), its prompt as .txt and its manifest as .json.

    frames: uint8 0..255. Each file appears under its name only when it is complete, the video last.
    """
    _write_atomically(
        path.with_suffix(".txt"), lambda temporary: temporary.write_text(prompt, encoding="utf-8")
    )
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    _write_atomically(
        path.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8")
    )
    write = _write_npy if path.suffix.lower() == ".npy" else _write_mp4
    _write_atomically(path, lambda temporary: write(frames_THWC, temporary, fps))


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Runs `write` on a temporary name beside `path`, then renames; an interrupt leaves nothing behind."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
