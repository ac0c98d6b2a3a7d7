"""Runs a download door: says what happens, and what a person may do after an interruption."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.download import Place
    from cosmos_nemo.checkpoint.released import HubFiles


def fetch(wanted: "Sequence[HubFiles]", place: "Callable[[], Place]", *, dry_run: bool) -> int:
    """The door's exit status: 0 everything is there, 1 something is missing, or it was interrupted.

    place: where the files go, asked for only now, when what it imports need not be waited for any more.
    """
    from cosmos_nemo.checkpoint.download import download

    try:
        return download(wanted, place(), dry_run=dry_run, say=say, warn=warn)
    except KeyboardInterrupt:
        warn("Stopped. The same command goes on from here.")
        return 1


def fetch_into(root: Path, wanted: "Sequence[HubFiles]", *, dry_run: bool) -> int:
    """Likewise, into a folder of checkpoints with one folder a repository."""

    def folder() -> "Place":
        from cosmos_nemo.checkpoint.download import AssetsFolder

        return AssetsFolder(root=root)

    return fetch(wanted, folder, dry_run=dry_run)


def say(line: str) -> None:
    print(line, flush=True)


def warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
