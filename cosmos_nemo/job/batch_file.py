"""A batch file: one JSON object a line, with a prompt or a visual input each."""

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cosmos_nemo.request import RequestError, Text2WorldRequest, VisualRequest

FIELDS: dict[str, type] = {"prompt": str, "negative_prompt": str, "seed": int}
"""What a line may say of its video; everything else comes from the flags."""
_VISUAL_INPUT = "visual_input"
"""A field more where worlds start from one; elsewhere passed over in silence: the released batch files serve
several scripts."""
_SAMPLES = {"visual_input": '"visual_input": "ball.mp4"', "prompt": '"prompt": "A red ball rolls."'}

_NAMES = {str: "text", int: "whole number"}

_OTHER_MARKS = (
    ("UTF-32", (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    ("UTF-16", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
"""How a file in another encoding begins. UTF-32's first: UTF-16's is the beginning of it."""


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line, or an entry of a list, of which nothing can be made; `number` counts from 1."""

    number: int
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.number}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class BatchFile:
    """A request for every good line, the bad lines, and the names of the fields that no video is made of."""

    requests: tuple[Text2WorldRequest, ...]
    bad_lines: tuple[BadLine, ...] = ()
    passed_over: tuple[str, ...] = ()


def read_batch(
    path: Path,
    *,
    template: Text2WorldRequest,
    folder: Path,
    prompt_is_made: bool = False,
    prompt_is_read: bool = False,
) -> BatchFile:
    """What the file holds, with all that its lines leave open as in `template`.

    A line needs a "prompt" unless prompt_is_made (by an upsampler, which heeds none unless prompt_is_read),
    and a "visual_input" if the template has one; a relative path is one from the working folder, as in the
    released scripts.
    The video of line n is `folder`/(n - 1).mp4, whatever the other lines hold, as in the released scripts;
    empty lines make none. RequestError if the file cannot be read or holds no good line.
    """
    kinds = FIELDS | ({_VISUAL_INPUT: str} if isinstance(template, VisualRequest) else {})
    needed = [name for name in (_VISUAL_INPUT, "prompt") if name in kinds]
    if prompt_is_made:
        needed.remove("prompt")
    requests, bad, passed_over = [], [], set()
    for number, content in enumerate(read_bytes(path).split(b"\n"), start=1):
        try:
            line = _decoded(content)
            if not line.strip():
                continue
            record = _record(line, needed)
            fields = fields_of(record, kinds, needed)
        except ValueError as error:
            bad.append(BadLine(number=number, reason=str(error)))
            continue
        passed_over |= record.keys() - FIELDS.keys() - {_VISUAL_INPUT}
        if prompt_is_made and not prompt_is_read and fields.get("prompt"):
            passed_over.add("prompt")
        requests.append(
            replace(template, **fields, video_path=folder / f"{number - 1}.mp4", line_number=number)
        )
    if not requests:
        why = f"; {bad[0]}" if bad else ""
        sample = ", ".join(_SAMPLES[name] for name in needed)
        raise RequestError(f"--batch_input_path {path} holds no line like {{{sample}}}{why}.")
    return BatchFile(requests=tuple(requests), bad_lines=tuple(bad), passed_over=tuple(sorted(passed_over)))


def read_bytes(path: Path) -> bytes:
    """The file without UTF-8's mark; RequestError if it cannot be read, or says that it is no UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"--batch_input_path {path} cannot be read: {error.strerror or error}.") from None
    for name, marks in _OTHER_MARKS:
        if content.startswith(marks):
            raise RequestError(f"--batch_input_path {path} is {name}, not UTF-8. Save it as UTF-8.")
    return content.removeprefix(codecs.BOM_UTF8)


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 (byte {line[error.start]:#x} at position {error.start})") from None


def _record(line: str, needed: Sequence[str]) -> dict[str, Any]:
    """The object on one line; ValueError says what is wrong with it."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return checked(record, needed)


def checked(record: object, needed: Sequence[str]) -> dict[str, Any]:
    """`record`, unless it is no object with the fields that are needed: ValueError says so."""
    if not isinstance(record, dict):
        raise ValueError(
            f"it holds a {type(record).__name__}, not an object with a {needed[0].replace('_', ' ')}"
        )
    for name in needed:
        if name not in record:
            raise ValueError(f'it has no "{name}"')
    return record


def fields_of(record: dict[str, Any], kinds: Mapping[str, type], needed: Sequence[str]) -> dict[str, Any]:
    """Those of `kinds`, in the types of a request; ValueError for one of another type, or an empty one."""
    fields = {name: record[name] for name in kinds if name in record}
    for name, value in fields.items():
        if type(value) is not kinds[name]:
            raise ValueError(f'"{name}" is {_shown(value)}, no {_NAMES[kinds[name]]}')
    for name in needed:
        if not fields[name].strip():
            raise ValueError(f'its "{name}" is empty')
    if _VISUAL_INPUT in fields:
        fields[_VISUAL_INPUT] = Path(fields[_VISUAL_INPUT])
    return fields


def _shown(value: object) -> str:
    """As it stands in the file, if that is short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)
