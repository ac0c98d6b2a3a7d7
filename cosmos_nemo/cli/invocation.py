"""What a door was asked for."""

from dataclasses import dataclass
from pathlib import Path

from cosmos_nemo.request import Setup, Text2WorldRequest


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A file of requests, of which every line says what differs from the invocation's own."""

    path: Path
    folder: Path
    """Where its videos go."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One call of a door."""

    setup: Setup
    request: Text2WorldRequest
    """The one to serve, or what all of `batch` have in common."""
    batch: Batch | None = None
    remarks: tuple[str, ...] = ()
    """What the flags were taken for, where a person might wonder; one rank says it."""
    dry_run: bool = False
