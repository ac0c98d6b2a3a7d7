"""Sums of downloaded files, and what was found out about them, so that 45 GB are not hashed twice.

A published sum is an MD5 or a SHA-256 in hex; its length tells which.

A folder's record is .cache/cosmos_nemo.json inside it, beside the one that the hub's client keeps.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_CHUNK = 16 * 2**20


_NAMES = {"md5": "MD5", "sha256": "SHA-256"}


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A file that is not the published one."""

    path: Path
    found: str
    published: str

    @property
    def algorithm(self) -> str:
        return _algorithm_of(self.published)

    def __str__(self) -> str:
        name = _NAMES[self.algorithm]
        return f"{self.path} has the {name} sum {self.found}, not the published {self.published}"


def mismatches(folder: Path, published: dict[str, str]) -> list[Mismatch]:
    """The files below `folder` whose sum is not the published one, by path; missing files do not count.

    A file that was verified before and has kept its size and its time is not read again.
    """
    known = _read(folder)["files"]
    wrong, verified = [], {}
    try:
        for path, sum_ in published.items():
            if not (folder / path).is_file():
                continue
            facts = _facts(folder / path) | {_algorithm_of(sum_): sum_}
            if known.get(path) == facts:
                continue
            found = digest_of(folder / path, _algorithm_of(sum_))
            if found == sum_:
                verified[path] = facts
            else:
                wrong.append(Mismatch(path=folder / path, found=found, published=sum_))
    finally:
        if verified:
            _note(folder, verified)
    return wrong


def noted_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 that files were found to have, by path: the hub's, without asking it."""
    found = {path: facts.get("sha256") for path, facts in _read(folder)["files"].items()}
    return {path: sum_ for path, sum_ in found.items() if isinstance(sum_, str)}


def digest_of(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def note_complete(folder: Path, paths: Iterable[str]) -> None:
    """Writes down that `paths` are all that is needed in `folder`, as they are now.

    So are the files of an earlier call: a folder may hold those of two repositories.
    """
    known = _read(folder)["files"]
    facts = {path: _facts(folder / path) for path in paths}
    same = {path: known[path] for path in facts if facts[path].items() <= known.get(path, {}).items()}
    others = {path: known[path] for path in known if (folder / path).is_file()}
    _write(folder, {"complete": True, "files": others | facts | same})


def is_noted_complete(folder: Path) -> bool:
    """Whether note_complete was called for `folder`, and every file has kept its size since."""
    record = _read(folder)
    return record["complete"] is True and all(
        (folder / path).is_file() and (folder / path).stat().st_size == facts.get("size")
        for path, facts in record["files"].items()
    )


def _algorithm_of(published: str) -> str:
    return "sha256" if len(published) == 64 else "md5"


def _facts(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _record_path(folder: Path) -> Path:
    return folder / ".cache" / "cosmos_nemo.json"


def _read(folder: Path) -> dict[str, Any]:
    """An empty record if there is none, or if it is damaged: then files are hashed again."""
    empty: dict[str, Any] = {"complete": False, "files": {}}
    try:
        record = json.loads(_record_path(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        return empty
    return empty | record


def _note(folder: Path, files: dict[str, Any]) -> None:
    record = _read(folder)
    _write(folder, record | {"files": record["files"] | files})


def _write(folder: Path, record: dict[str, Any]) -> None:
    """Keeps no record in a folder that may only be read."""
    path = _record_path(folder)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        logger.debug("%s is not written: %s", path, error)
