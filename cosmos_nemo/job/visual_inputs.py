"""The images and videos that a job's worlds start from, looked at before any model is."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cosmos_nemo.request import (
    AutoregressiveRequest,
    InterpolationRequest,
    RequestError,
    Text2WorldRequest,
    Video2WorldRequest,
    VisualRequest,
)
from cosmos_nemo.stages.media import file_digest
from cosmos_nemo.stages.visual_input import VisualFacts, VisualInputError, visual_facts


@dataclass(frozen=True, kw_only=True)
class VisualInput:
    """A file as it was before the run."""

    sha256: str
    facts: VisualFacts


class VisualInputs:
    """The files that requests name, each decoded once however many requests it serves."""

    def __init__(self, requests: Iterable[Text2WorldRequest]) -> None:
        """requests: all of the job, none of whose videos may replace a file that another starts from."""
        self.outputs = {os.path.realpath(request.video_path) for request in requests}
        self.found: dict[Path, VisualInput] = {}

    def check(self, request: Text2WorldRequest) -> None:
        """RequestError if the request's file cannot be read, has too few frames or would be replaced."""
        if not isinstance(request, VisualRequest):
            return
        try:
            self._check(request)
        except (VisualInputError, RequestError) as error:
            what = '"visual_input"' if request.line_number else "--conditioned_image_or_video_path"
            raise RequestError(f"{what} {error}") from None

    def _check(self, request: VisualRequest) -> None:
        path = request.visual_input
        if path not in self.found:
            self._check_place(path)
            facts = visual_facts(path)
            self.found[path] = VisualInput(sha256=file_digest(path), facts=facts)
        facts = self.found[path].facts
        if isinstance(request, InterpolationRequest):
            request.given_frames(facts.num_frames)
            return
        _check_last_frames(request, facts)
        if isinstance(request, Video2WorldRequest):
            _check_output_size(request, facts)

    def _check_place(self, path: Path) -> None:
        try:
            place = os.path.realpath(path)
        except ValueError as error:  # a NUL or half a surrogate pair, which JSON can hold
            raise RequestError(f"{str(path)!r} is no file's name: {error}.") from None
        if place in self.outputs:
            raise RequestError(f"{path} would be replaced by a video of this run. Write to another folder.")
        if os.path.splitext(place)[0] in map(_without_suffix, self.outputs):
            raise RequestError(
                f"{path}: the .json or .txt beside it would be replaced by that of a video of this run. "
                "Write to another folder."
            )


def _without_suffix(path: str) -> str:
    return os.path.splitext(path)[0]


def _check_last_frames(request: Video2WorldRequest | AutoregressiveRequest, facts: VisualFacts) -> None:
    path, needed = request.visual_input, request.num_input_frames
    if facts.num_frames >= needed:
        return
    if facts.is_image:
        raise RequestError(
            f"{path} is an image, and --num_input_frames {needed} needs a video. Pass --num_input_frames 1."
        )
    raise RequestError(
        f"{path} has {facts.num_frames} frame(s), fewer than --num_input_frames {needed}. "
        "Pass a longer video or --num_input_frames 1."
    )


def _check_output_size(request: Video2WorldRequest, facts: VisualFacts) -> None:
    """H.264 halves the sides of its colours."""
    is_odd = facts.width % 2 or facts.height % 2
    if request.keeps_input_size and is_odd and request.video_path.suffix.lower() == ".mp4":
        other = "" if request.line_number else ", or write an .npy"
        raise RequestError(
            f"{request.visual_input} has {facts.width} x {facts.height} pixels, and an mp4 needs even sides. "
            f"Leave --keep_input_size out{other}."
        )
