"""Writing a video or an image and what belongs beside it, whole or not at all."""

import fcntl
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from cosmos_nemo.request import IMAGE_SUFFIXES, VIDEO_SUFFIXES, RequestError

_QUALITY = 5
"""imageio's 0..10; the released scripts write with 5."""
_JPEG_QUALITY = 85
"""PIL's 0..95, as released."""
_ENDINGS = "|".join(suffix[1:] for suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES, ".txt", ".json"))


def check_writable(path: Path) -> None:
    """RequestError unless a video or image can be written at `path`; writes nothing. Before any weight is
    read."""
    if path.is_dir():
        name = "image.jpg" if _is_image(path) else "video.mp4"
        raise RequestError(f"--video_save_path {path} is a folder. Pass {path / name}.")
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
    """Writes `path` (.mp4 by ffmpeg, .npy, or a single frame as .jpg or .png), its prompt as .txt, its
    manifest as .json; makes the folder.

    frames: uint8 0..255. All three appear under their names only when all are complete, the video last, and
    are of one call even when several processes write the same names. What a killed process left of the same
    video goes. The manifest gets the digest of the video's file under the name of digest_field. OSError
    if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    is_array = path.suffix.lower() == ".npy"
    write_frames = _write_npy if is_array else _write_image if _is_image(path) else _write_mp4
    with _renamed_together(path.parent) as temporary:
        prompt_path = temporary(path.with_suffix(".txt"))
        manifest_path = temporary(path.with_suffix(".json"))
        video_path = temporary(path)
        prompt_path.write_text(prompt, encoding="utf-8")
        write_frames(frames_THWC, video_path, fps)
        _write_json(manifest_path, {**manifest, digest_field(path): file_digest(video_path)})
    blocked_path(path).unlink(missing_ok=True)


def write_blocked(path: Path, *, manifest: Mapping[str, Any]) -> None:
    """Writes down beside where the video would be that a guardrail blocked it; an older video stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with _renamed_together(path.parent) as temporary:
        _write_json(temporary(blocked_path(path)), manifest)


def blocked_path(path: Path) -> Path:
    """Where a blocked video's manifest goes: name.blocked.json for name.mp4."""
    return path.with_suffix(".blocked.json")


def restore_prompt(path: Path, prompt: str) -> bool:
    """Whether the .txt of the finished video `path` was not `prompt`; then it is written again."""
    written = path.with_suffix(".txt")
    with suppress(FileNotFoundError):
        if written.read_bytes() == prompt.encode():
            return False
    with _renamed_together(path.parent) as temporary:
        temporary(written).write_text(prompt, encoding="utf-8")
    return True


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files that killed processes left of the video `path`; those of living ones stay.

    So do all of them on a file system without locks, where living and dead cannot be told apart.
    """
    if not path.parent.is_dir():
        return
    part = re.compile(rf"\.{re.escape(path.stem)}(\.blocked)?\.[0-9a-f]{{8}}\.part\.({_ENDINGS})", re.I)
    with _locked(path.parent):
        for found in path.parent.iterdir():
            if part.fullmatch(found.name) and _is_dead(found):
                found.unlink(missing_ok=True)


def digest_field(path: Path) -> str:
    """The name that a manifest has for the digest of the file `path`."""
    return "image_sha256" if _is_image(path) else "video_sha256"


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _renamed_together(folder: Path) -> Iterator[Callable[[Path], Path]]:
    """Gives temporary files in `folder`, which get the real names at the end, one process at a time.

    An interrupt leaves nothing behind. The files are locked while this process lives (see remove_leftovers).
    """
    names: dict[Path, Path] = {}
    with ExitStack() as held:

        def temporary(path: Path) -> Path:
            names[path] = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
            with _locked(folder):  # or another process could take it for a dead one's before it is locked
                held.enter_context(_held(names[path]))
            return names[path]

        try:
            yield temporary
            with _locked(folder):
                for path, written in names.items():
                    os.replace(written, path)
        finally:
            for written in names.values():
                written.unlink(missing_ok=True)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Makes an empty file, locked until the end or until this process dies."""
    with path.open("xb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_dead(path: Path) -> bool:
    """Whether no living process holds the file."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits until no other process holds the folder. A file system without locks is written to all the same:
    then only two runs that end in the same instant could mix their files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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


def _write_image(frames_THWC: Tensor, path: Path, fps: int) -> None:
    from PIL import Image

    [frame_HWC] = frames_THWC
    format_, options = ("PNG", {}) if path.suffix.lower() == ".png" else ("JPEG", {"quality": _JPEG_QUALITY})
    Image.fromarray(frame_HWC.numpy()).save(path, format=format_, **options)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _check_encoder(path: Path) -> None:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise RequestError(
            f"--video_save_path {path} needs ffmpeg, which is not here. Install imageio-ffmpeg, or pass "
            "a path that ends in .npy to get the frames as an array."
        ) from None
