"""Which layout lies at a path."""

import re
from collections.abc import Callable
from pathlib import Path

from cosmos_nemo.checkpoint.reader.base import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.reader.safetensors import open_safetensors, shards_of_index
from cosmos_nemo.checkpoint.reader.torch_file import open_torch_file
from cosmos_nemo.checkpoint.reader.zarr import open_zarr

# NeMo saves into the first; a released repository keeps its NeMo checkpoint in the second.
_INNER = ("weights", "nemo")

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, a file or a folder of any known layout, without reading its data.

    A NeMo path may be the folder of the files, or the one above its `weights` or `nemo`. Raises
    CheckpointError, naming the file, if anything is missing, truncated or unfinished, or if `path` holds none
    or several checkpoints.
    """
    path = Path(path).expanduser()
    try:
        if not path.exists():
            raise CheckpointError(f"{path} does not exist{_neighbours(path)}")
        _refuse_unfinished(path)
        return _open_file(path) if path.is_file() else _open_folder(path)
    except PermissionError as error:
        raise CheckpointError(f"{error.filename} may not be read: ask its owner for leave to") from error


def _open_folder(folder: Path) -> Checkpoint:
    found = _candidates(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint. It holds {_listing(folder)}")
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds several checkpoints: {', '.join(found)}. Pass one of them")
    (opening,) = found.values()
    return opening()


def _neighbours(path: Path) -> str:
    return f"; {path.parent} holds {_listing(path.parent)}" if path.parent.is_dir() else ""


def _listing(folder: Path) -> str:
    names = sorted(child.name + "/" * child.is_dir() for child in folder.iterdir())
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest if names else "nothing"


def _refuse_unfinished(path: Path) -> None:
    whole = path.absolute()  # a relative path may be without a name, as "." is
    folder = whole.parent if whole.name == "weights" else whole
    marker = folder.with_name(folder.name + "-unfinished")
    if marker.exists():
        raise CheckpointError(
            f"{path} was not saved to the end ({marker.name} lies beside it): pass an earlier one"
        )


def _open_file(path: Path) -> Checkpoint:
    if path.name.endswith(".safetensors"):
        return open_safetensors(path, shards=[path])
    if path.name.endswith(".safetensors.index.json"):
        return open_safetensors(path.parent, shards=shards_of_index(path))
    return open_torch_file(path)


def _candidates(folder: Path) -> dict[str, Callable[[], Checkpoint]]:
    found: dict[str, Callable[[], Checkpoint]] = {}
    if (folder / ".metadata").is_file():
        found[".metadata"] = lambda: _open_torch_dist(folder)
    elif any(folder.glob("__*.distcp")):
        raise CheckpointError(
            f"{folder / '.metadata'} is missing beside the .distcp files: the save did not end, "
            "or the folder was copied without its hidden files"
        )
    if (first := next(folder.glob("*/.zarray"), None)) is not None:
        found[f"{first.parent.name}/"] = lambda: open_zarr(folder)
    if (folder / "model.pt").is_file():
        found["model.pt"] = lambda: open_torch_file(folder / "model.pt")
    found |= _safetensors_sets(folder)
    if not found:
        inner = next((folder / name for name in _INNER if (folder / name).is_dir()), None)
        if inner is not None:
            found[f"{inner.name}/"] = lambda: open_checkpoint(inner)
    return found


def _open_torch_dist(folder: Path) -> Checkpoint:
    # torch.distributed.checkpoint takes as long to import as torch itself.
    from cosmos_nemo.checkpoint.reader.torch_dist import open_torch_dist

    return open_torch_dist(folder)


def _safetensors_sets(folder: Path) -> dict[str, Callable[[], Checkpoint]]:
    """Files that belong together, by the index that names them or by their numbers."""
    sets: dict[str, list[Path]] = {}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        sets[index.name] = shards_of_index(index)
    indexed = {shard for shards in sets.values() for shard in shards}
    for file in sorted(set(folder.glob("*.safetensors")) - indexed):
        match = _SHARD.fullmatch(file.name)
        sets.setdefault(match[1] if match else file.name, []).extend(
            _all_shards(file, match) if match else [file]
        )
    return {
        name: lambda shards=shards: open_safetensors(folder, shards=dict.fromkeys(shards))  # type: ignore[misc]
        for name, shards in sets.items()
    }


def _all_shards(file: Path, match: re.Match[str]) -> list[Path]:
    stem, _, count = match.groups()
    shards = [file.with_name(f"{stem}-{i:05d}-of-{count}.safetensors") for i in range(1, int(count) + 1)]
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing: copy or download the checkpoint again")
    return shards
