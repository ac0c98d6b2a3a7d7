"""What earlier runs left where a video is to go."""

import json
import logging
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from cosmos_nemo.stages.media import (
    blocked_path,
    digest_field,
    file_digest,
    remove_leftovers,
    restore_prompt,
)

logger = logging.getLogger(__name__)


class Past(Enum):
    """What became of a video in an earlier run."""

    OPEN = "not made yet"
    OTHER = "a video of something else is there"
    MADE = "made"
    BLOCKED = "blocked"

    @property
    def is_open(self) -> bool:
        """Whether the video is to be made."""
        return self in (Past.OPEN, Past.OTHER)


def past_of(path: Path, item: str) -> Past:
    """Whether the very video `item` (see Job.item_of) lies whole at `path`, or was blocked; changes nothing.

    A damaged or half-replaced file counts as not made; one without a manifest is OTHER.
    """
    if _read(blocked_path(path)).get("item") == item:
        return Past.BLOCKED
    if not path.is_file():
        return Past.OPEN
    manifest = _manifest(path)
    if manifest.get("item") != item:
        return Past.OTHER
    return Past.MADE if manifest.get(digest_field(path)) == file_digest(path) else Past.OPEN


def resume(path: Path, item: str) -> Past:
    """past_of, after which the prompt of a finished video is restored; what a killed run left of it goes."""
    remove_leftovers(path)
    past = past_of(path, item)
    prompt = _manifest(path).get("prompt")
    if past is Past.MADE and isinstance(prompt, str) and restore_prompt(path, prompt):
        names = path.with_suffix(".txt"), path.with_suffix(".json").name
        logger.warning("%s was missing or changed: written again from %s", *names)
    return past


def past_lines(pasts: Sequence[Past], folder: Path | None, *, made: str = "video") -> list[str]:
    """What a person should know before the videos of a batch are made in `folder`, or where each says."""
    lines, where = [], "" if folder is None else f" in {folder}"
    if found := pasts.count(Past.MADE):
        lines.append(f"{found} of {len(pasts)} {made}s are there already")
    if others := pasts.count(Past.OTHER):
        lines.append(
            f"{others} of the {len(pasts)} {made}s{where} are of other requests and will be replaced"
        )
    return lines


def _manifest(path: Path) -> dict[str, object]:
    return _read(path.with_suffix(".json"))


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
