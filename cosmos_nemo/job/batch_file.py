"""A batch file: one JSON object a line, with a prompt each."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cosmos_nemo.request import RequestError, Text2WorldRequest

_FIELDS: dict[str, type] = {"prompt": str, "negative_prompt": str, "seed": int}
"""What a line may say of its video; everything else comes from the flags."""

_NAMES = {str: "text", int: "whole number"}

_OF_OTHER_DOORS = {"visual_input"}
"""Passed over in silence: the released batch files serve several scripts."""


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line of which no video can be made; `number` counts from 1."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class BatchFile:
    """A request for every good line, the bad lines, and the names of the fields that no video is made of."""

    requests: tuple[Text2WorldRequest, ...]
    bad_lines: tuple[BadLine, ...] = ()
    passed_over: tuple[str, ...] = ()


def read_batch(path: Path, *, template: Text2WorldRequest, folder: Path) -> BatchFile:
    """What the file holds, with all that its lines leave open as in `template`.

    The video of line n is `folder`/(n - 1).mp4, whatever the other lines hold, as in the released scripts;
    empty lines make none. RequestError if the file cannot be read or holds no good line.
    """
    requests, bad, passed_over = [], [], set()
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = _record(line)
            fields = _fields(record)
        except ValueError as error:
            bad.append(BadLine(number=number, reason=str(error)))
            continue
        passed_over |= record.keys() - _FIELDS.keys() - _OF_OTHER_DOORS
        requests.append(
            replace(template, **fields, video_path=folder / f"{number - 1}.mp4", line_number=number)
        )
    if not requests:
        why = f"; {bad[0]}" if bad else ""
        raise RequestError(
            f'--batch_input_path {path} holds no line like {{"prompt": "A red ball rolls."}}{why}.'
        )
    return BatchFile(requests=tuple(requests), bad_lines=tuple(bad), passed_over=tuple(sorted(passed_over)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RequestError(f"--batch_input_path {path} cannot be read: {reason}.") from None


def _record(line: str) -> dict[str, Any]:
    """The object on one line; ValueError says what is wrong with it."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, not an object with a prompt")
    if "prompt" not in record:
        raise ValueError('it has no "prompt"')
    return record


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    fields = {name: record[name] for name in _FIELDS if name in record}
    for name, value in fields.items():
        if type(value) is not _FIELDS[name]:
            raise ValueError(f'"{name}" is {json.dumps(value)}, no {_NAMES[_FIELDS[name]]}')
    if not fields["prompt"].strip():
        raise ValueError('its "prompt" is empty')
    return fields
