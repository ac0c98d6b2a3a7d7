"""Reading videos frame by frame: .mp4 by ffmpeg, .npy as an array.

T frames, H W rows and columns; frames are uint8 0..255.
"""

import json
import logging
import math
import zipfile
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

_log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".npy")
DEFAULT_FPS = 24.0
"""Of an array without a frame rate beside it: what the Cosmos 1.0 models were trained for."""
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,h264,hevc,yuv4mpegpipe"
"""ffmpeg would also draw a text file as a video, open what a playlist names, and take any picture for one."""
_COMPLETE = 0.9
"""Of the frames that a header speaks of: headers only estimate, and sound may go on after the last frame."""


class VideoError(ValueError):
    """A video that cannot be read."""


class NoFfmpegError(VideoError):
    """A video that could perhaps be read if ffmpeg were here."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What there is to know of a video without looking at it."""

    num_frames: int
    height: int
    width: int
    fps: float


def video_facts(path: Path) -> VideoFacts:
    """Decodes an mp4 from end to end to count its frames: headers only estimate them. VideoError if damaged.

    Of a file that was cut and plays to the cut, the frames until there; the log warns if the header speaks of
    more. An array's frame rate is "fps" in the .json of its name, else DEFAULT_FPS.
    """
    if path.suffix.lower() == ".npy":
        num_frames, height, width, _ = _open_npy(path).shape
        return VideoFacts(num_frames=num_frames, height=height, width=width, fps=_fps_of_npy(path))
    with closing(_ffmpeg(path, pix_fmt="gray", bits_per_pixel=8)) as items:  # a third of the bytes to pass on
        meta = next(items)
        num_frames = sum(1 for _ in items)
    width, height = meta["size"]
    if not meta["fps"] or num_frames < 1:
        raise VideoError(f"{path} has {num_frames} frames at {meta['fps']} fps: is it a video?")
    announced = meta["fps"] * meta["duration"]
    if num_frames < _COMPLETE * announced - 1:
        _log.warning(
            "%s has %d frames, its header says about %d. Is it complete?", path, num_frames, announced
        )
    return VideoFacts(num_frames=num_frames, height=height, width=width, fps=float(meta["fps"]))


def read_frames(path: Path) -> Generator[numpy.ndarray, None, None]:
    """The frames [H, W, 3] in their order; as many as `video_facts` counts. VideoError if it is damaged."""
    if path.suffix.lower() == ".npy":
        yield from _open_npy(path)
        return
    with closing(_ffmpeg(path, pix_fmt="rgb24", bits_per_pixel=24)) as items:
        width, height = next(items)["size"]
        for frame in items:
            yield numpy.frombuffer(frame, dtype=numpy.uint8).reshape(height, width, 3)


def _ffmpeg(path: Path, *, pix_fmt: str, bits_per_pixel: int) -> Generator[Any, None, None]:
    """imageio-ffmpeg's generator: first a dict of facts, then the bytes of each frame."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise NoFfmpegError(
            f"{path} needs ffmpeg, which is not here. Install imageio-ffmpeg, or pass the frames as an "
            "array of uint8 [T, H, W, 3] in an .npy file."
        ) from None
    if not path.is_file():
        raise VideoError(f"{path} does not exist.")
    try:
        frames = imageio_ffmpeg.read_frames(
            path,
            pix_fmt=pix_fmt,
            bits_per_pixel=bits_per_pixel,
            input_params=["-format_whitelist", _CONTAINERS],
            output_params=_every_frame(imageio_ffmpeg.get_ffmpeg_version()),
        )
        with closing(frames):
            yield from frames
    except (RuntimeError, OSError) as error:
        if "does not contain any stream" in str(error):
            raise VideoError(f"{path} has no picture, only sound or data.") from error
        if "not on whitelist" in str(error).lower():
            raise VideoError(f"{path} is no video: it is none of mp4, mov, mkv, webm and avi.") from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise VideoError(
            f"{path} cannot be decoded ({lines[-1] if lines else type(error).__name__}): is it complete?"
        ) from error


def _every_frame(version: str) -> list[str]:
    """Options without which ffmpeg doubles and drops frames of a video whose frames come at uneven times."""
    major = version.removeprefix("n").partition(".")[0]
    if major.isdecimal() and int(major) < 6:  # the new name came with 5.1, the old one went later
        return ["-vsync", "passthrough"]
    return ["-fps_mode", "passthrough"]


def _open_npy(path: Path) -> numpy.ndarray:
    """The array, mapped rather than read."""
    try:
        frames_THWC = numpy.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist.") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise VideoError(f"{path} cannot be read as an array ({error}): is it complete?") from error
    is_video = isinstance(frames_THWC, numpy.ndarray) and frames_THWC.ndim == 4 and 0 not in frames_THWC.shape
    if not is_video or frames_THWC.dtype != numpy.uint8 or frames_THWC.shape[3] != 3:
        found = (
            f"{frames_THWC.dtype} {list(frames_THWC.shape)}"
            if hasattr(frames_THWC, "shape")
            else "many arrays"
        )
        raise VideoError(f"{path} holds {found}: a video is uint8 [T, H, W, 3].")
    return frames_THWC


def _fps_of_npy(path: Path) -> float:
    facts = path.with_suffix(".json")
    if not facts.is_file():
        return DEFAULT_FPS
    try:
        content = json.loads(facts.read_text(encoding="utf-8"))
        fps = float(content.get("fps", DEFAULT_FPS))
    except (ValueError, TypeError, AttributeError) as error:
        raise VideoError(f'{facts} is no JSON object like {{"fps": 24}} ({error}).') from error
    if not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"{facts} says {fps} fps: a frame rate is above 0.")
    return fps
