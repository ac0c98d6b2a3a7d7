"""A short name for the content of a checkpoint, for manifests and caches."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

_BOOKKEEPING = ".cache"
"""A folder in which downloads note times and progress."""
_SAMPLES = 16
_SAMPLE_SIZE = 4096


def fingerprint(path: Path) -> str:
    """16 hex digits that change with the names, the sizes or (almost surely) the content below `path`.

    Files of up to 64 KiB are read whole; of a larger one 16 evenly spaced pieces of 4 KiB, its two ends
    included, so that 40 GB take no longer than their names. A single file's own name does not count.
    """
    digest = hashlib.sha256()
    for name, file in _files(path):
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        for piece in _pieces(file, size=size):
            digest.update(piece)
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[tuple[str, Path]]:
    if path.is_file():
        return [("", path)]
    files = (file for file in path.rglob("*") if file.is_file())
    named = ((file.relative_to(path), file) for file in files)
    return sorted((name.as_posix(), file) for name, file in named if name.parts[0] != _BOOKKEEPING)


def _pieces(file: Path, *, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        if size <= _SAMPLES * _SAMPLE_SIZE:
            yield stream.read()
            return
        for sample in range(_SAMPLES):
            stream.seek((size - _SAMPLE_SIZE) * sample // (_SAMPLES - 1))
            yield stream.read(_SAMPLE_SIZE)
