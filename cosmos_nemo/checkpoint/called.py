"""What a checkpoint is called, where its tensors may be those of several models."""

from collections.abc import Collection
from pathlib import Path

from cosmos_nemo.checkpoint.writer.nemo_context import named_in_context

_MAX_FOLDERS = 5
"""models--OWNER--NAME / snapshots / COMMIT / nemo / weights"""


def called(path: Path, known: Collection[str]) -> str | None:
    """Which of the `known` models NeMo's context beside the checkpoint at `path` names, or else a folder that
    it lies in; None if neither does."""
    whole = path.absolute()
    contexts = (named_in_context(folder) for folder in (whole, whole.parent))
    folders = (folder.name.rpartition("--")[2] for folder in (whole, *whole.parents)[:_MAX_FOLDERS])
    return next((name for names in (contexts, folders) for name in names if name in known), None)
