"""A batch file of Text2Image: a JSON list of entries with a prompt and, if they like, their image's path."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cosmos_nemo.job.batch_file import FIELDS, BadLine, BatchFile, checked, fields_of, read_bytes
from cosmos_nemo.request import RequestError, Text2ImageRequest

_BLOCKED = ".blocked"
"""What the record of a blocked image ends in, before its suffix."""
_OUTPUT = "output_image"
_KINDS = FIELDS | {_OUTPUT: str}


def read_image_batch(path: Path, *, template: Text2ImageRequest) -> BatchFile:
    """What the list holds, with all that its entries leave open as in `template`.

    Paths are those from the working folder; the image of entry n that names none is output_(n - 1).jpg, as in
    the released script. An entry that would replace another's image, the files beside it or this file is bad.
    RequestError if the file cannot be read, or holds no good entry.
    """
    requests, bad, passed_over = [], [], set()
    taken: dict[str, int] = {}
    taken_files = set[Path]()
    for number, entry in enumerate(_entries(path), start=1):
        try:
            record = checked(entry, ["prompt"])
            needed = ["prompt", *([_OUTPUT] if _OUTPUT in record else [])]
            fields = fields_of(record, _KINDS, needed)
            image_path = Path(fields.pop(_OUTPUT, f"output_{number - 1}.jpg"))
            place = _place(image_path)
            if place == _place(path):
                raise ValueError(f"what lies beside {image_path} would replace {path}")
            if place.endswith(_BLOCKED):
                raise ValueError(f"{image_path} is called as the record of another image that was blocked")
            if any(above in taken_files for above in image_path.parents):
                raise ValueError(f"{image_path} lies below another entry's image, which is no folder")
            if place in taken:
                raise ValueError(f"{image_path} and what lies beside it are those of entry {taken[place]}")
        except ValueError as error:
            bad.append(BadLine(number=number, reason=str(error), unit="entry"))
            continue
        taken[place] = number
        taken_files.add(image_path)
        passed_over |= record.keys() - _KINDS.keys()
        requests.append(replace(template, **fields, video_path=image_path, line_number=number))
    if not requests:
        why = f"; {bad[0]}" if bad else ""
        raise RequestError(f'--batch_input_path {path} holds no entry like {{"prompt": "A red ball."}}{why}.')
    return BatchFile(requests=tuple(requests), bad_lines=tuple(bad), passed_over=tuple(sorted(passed_over)))


def _entries(path: Path) -> Sequence[object]:
    raw = read_bytes(path)
    try:
        content = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise RequestError(f"--batch_input_path {path} is no JSON ({error}).") from None
    except RecursionError:
        raise RequestError(f"--batch_input_path {path} is nested too deeply.") from None
    if not isinstance(content, list):
        raise RequestError(
            f"--batch_input_path {path} holds a {type(content).__name__}, not a list of entries like "
            f'{{"prompt": "A red ball.", "{_OUTPUT}": "ball.jpg"}}.'
        )
    return content


def _place(image_path: Path) -> str:
    """What an image shares with the files beside it; ValueError for what is no file's name."""
    try:
        return os.path.splitext(os.path.realpath(image_path))[0]
    except ValueError as error:  # a NUL or half a surrogate pair, which JSON can hold
        raise ValueError(f"{str(image_path)!r} is no file's name: {error}") from None
