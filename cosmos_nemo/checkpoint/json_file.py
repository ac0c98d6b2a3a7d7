"""The small JSON files beside released weights."""

import json
from pathlib import Path
from typing import Any

from cosmos_nemo.checkpoint.reader import CheckpointError


def read_json(path: Path, *, lacking: str = "is incomplete") -> dict[str, Any]:
    """CheckpointError if it is no JSON object; `lacking`: what its folder is not, or has not, without it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        where = "is a link to a file that is not there" if path.is_symlink() else "is missing"
        raise CheckpointError(f"{path.parent} {lacking}: {path.name} {where}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds a {type(content).__name__}.")
    return content
