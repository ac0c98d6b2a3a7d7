"""What earlier runs left where a video is to go."""

import json
from enum import Enum
from pathlib import Path

from cosmos_nemo.stages.media import blocked_path, file_digest


class Past(Enum):
    """What became of a video in an earlier run."""

    OPEN = "not made yet"
    MADE = "made"
    BLOCKED = "blocked"


def past_of(path: Path, item: str) -> Past:
    """Whether the very video `item` (see Job.item_of) lies whole at `path`, or was blocked.

    A damaged or half-replaced file counts as not made.
    """
    if _item_in(blocked_path(path)) == item:
        return Past.BLOCKED
    manifest = _read(path.with_suffix(".json"))
    if manifest.get("item") != item or not path.is_file():
        return Past.OPEN
    return Past.MADE if manifest.get("video_sha256") == file_digest(path) else Past.OPEN


def _item_in(path: Path) -> object:
    return _read(path).get("item")


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
