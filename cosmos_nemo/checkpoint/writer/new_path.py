"""A file or folder that appears under its name only when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmos_nemo.checkpoint.reader import CheckpointError


def refuse_existing(target: Path) -> None:
    """CheckpointError if there is something at `target`: checkpoints are never overwritten."""
    if target.exists():
        raise CheckpointError(f"{target} exists already: remove it, or name another target")


@contextmanager
def new_path(target: Path) -> Iterator[Path]:
    """A path to write to, renamed to `target` at the end, and removed if the body raises.

    CheckpointError if `target` exists.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
        raise
