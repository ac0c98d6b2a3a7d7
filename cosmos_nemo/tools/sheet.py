"""`cosmos-nemo sheet VIDEO ... OUT.png`: frames of some videos in one picture, each under its prompt."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

_PICTURES = (".png", ".jpg", ".jpeg")


class _SheetError(ValueError):
    """A sheet that cannot be made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help=".mp4, or .npy of uint8 frames")
    parser.add_argument("out", type=Path, metavar="OUT.png", help="the picture, .png or .jpg; written anew")
    parser.add_argument("--frames", type=int, default=8, help="frames of each, first and last included; 8")


def run(args: argparse.Namespace) -> int:
    """0 the picture is written; 2 a bad video or flag; 1 if the disk fails."""
    from cosmos_nemo.stages.video_reading import VideoError

    try:
        _write_sheet(args.videos, args.out, num_frames=args.frames)
    except (_SheetError, VideoError) as error:
        print(f"cosmos-nemo sheet: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cosmos-nemo sheet: {args.out} was not written: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {len(args.videos)} videos")
    return 0


def _write_sheet(videos: list[Path], out: Path, *, num_frames: int) -> None:
    from cosmos_nemo.stages.sheet import contact_sheet

    if out.suffix.lower() not in _PICTURES:
        raise _SheetError(f"the last name, {out}, must end in {' or '.join(_PICTURES)}: it is the picture's.")
    if num_frames < 1:
        raise _SheetError(f"--frames {num_frames} must be at least 1.")
    rows = [(_text(path), _chosen_frames(path, num_frames=num_frames)) for path in videos]
    sheet = contact_sheet(rows, num_frames=num_frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        sheet.save(partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _text(path: Path) -> str:
    """The prompt in the .txt beside the video, else the video's name."""
    beside = path.with_suffix(".txt")
    prompt = beside.read_text(encoding="utf-8", errors="replace").strip() if beside.is_file() else ""
    return prompt or path.name


def _chosen_frames(path: Path, *, num_frames: int) -> "numpy.ndarray":
    """Only the frames that the sheet shows: a long video would not fit in memory."""
    import numpy

    from cosmos_nemo.stages.sheet import evenly_spaced
    from cosmos_nemo.stages.video_reading import read_frames, video_facts

    chosen = set(evenly_spaced(video_facts(path).num_frames, count=num_frames))
    return numpy.stack([frame for number, frame in enumerate(read_frames(path)) if number in chosen])
