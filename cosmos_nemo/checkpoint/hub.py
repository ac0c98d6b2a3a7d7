"""Everything that speaks to the hub, or reads what its client left on the disk.

The client's own errors differ with its version and with the HTTP library of the day: all leave here as
HubError.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_nemo.checkpoint.families import FilesBeside, beside, lacking_together
from cosmos_nemo.checkpoint.released import HubFiles, lacking, wanted

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

logger = logging.getLogger(__name__)

_WITHOUT_ANSWER = (
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "httpx.TransportError",
)
"""Of the two HTTP libraries; the client has only one of them."""
_SYSTEM = ("builtins", "socket", "ssl")
"""Where the errors of the operating system are."""


class HubError(ValueError):
    """What the hub refused, lacks or could not send; a clause that names the repository."""


class UnreachableError(HubError):
    """No answer of the hub at all: no network, or one without a way to it."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository; `size` in bytes, 0 if the hub does not tell; `blob` names its content."""

    path: str
    size: int
    blob: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a repository that are wanted, as they are at `commit`."""

    commit: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def endpoint() -> str:
    """The address of the hub (HF_ENDPOINT)."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_offline() -> bool:
    """Whether the person forbade to ask the hub (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def cache_folder() -> Path:
    """The folder of the Hugging Face cache, below HF_HOME unless HF_HUB_CACHE says otherwise."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def list_files(files: HubFiles) -> Listing:
    """What the hub has of `files`; HubError if it cannot say or lacks something that is needed."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(files.repository, revision=files.revision, files_metadata=True)
    except Exception as error:
        raise _hub_error(files, error) from error
    known = {file.rfilename: _hub_file(file) for file in info.siblings or ()}
    listing = Listing(commit=info.sha or "main", files=tuple(known[path] for path in wanted(files, known)))
    if lacks := lacking(files, _inside(files, [file.path for file in listing.files])):
        raise HubError(f"{files.repository} on the hub has no {lacks}")
    return listing


def check_access(files: HubFiles, listing: Listing) -> None:
    """HubError unless the hub would send the files: a gated repository shows its listing to everyone."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(files.repository, listing.files[0].path, revision=listing.commit))
    except Exception as error:
        raise _hub_error(files, error) from error


def cached(files: HubFiles, *, cache_dir: Path | None = None) -> Path | None:
    """The folder of `files` in the Hugging Face cache if nothing that is needed is missing there.

    Not asked of the client: what it calls complete, where unwanted files are missing, changes with its
    version.
    """
    snapshot = cached_snapshot(files, cache_dir=cache_dir)
    if snapshot is None:
        return None
    folder = snapshot / files.subfolder
    return None if lacking_together(files, names_in(folder)) else folder


def put_together(files: HubFiles, *, cache_dir: Path | None = None) -> Path | None:
    """As `cached`, once what belongs beside `files` was copied there from its own place in the cache.

    None if anything is missing, or if the cache may only be read.
    """
    snapshot, other = cached_snapshot(files, cache_dir=cache_dir), beside(files)
    source = cached(other, cache_dir=cache_dir) if other is not None else None
    if other is None or source is None or snapshot is None or lacking(files, names_in(snapshot)):
        return None
    try:
        _copy(other, source, snapshot)
    except OSError as error:
        logger.debug("%s: %s", snapshot, error)
    return cached(files, cache_dir=cache_dir)


def cached_snapshot(files: HubFiles, *, cache_dir: Path | None = None) -> Path | None:
    """The repository in the Hugging Face cache, whole or not; None if nothing of it was ever fetched."""
    repository = _repository_folder(files, cache_dir)
    commit = files.revision
    if commit is None:
        newest = repository / "refs" / "main"
        if not newest.is_file():
            return None
        commit = newest.read_text(encoding="utf-8").strip()
    return repository / "snapshots" / commit


def is_unfinished(files: HubFiles, *, cache_dir: Path | None = None) -> bool:
    """A download that was stopped leaves unfinished blobs; the snapshot beside them looks complete."""
    return any((_repository_folder(files, cache_dir) / "blobs").glob("*.incomplete"))


def cached_paths(files: HubFiles, listing: Listing, *, cache_dir: Path | None = None) -> set[str]:
    """The paths of `listing` that the Hugging Face cache holds whole, be it from another commit."""
    repository = _repository_folder(files, cache_dir)
    snapshot, blobs = repository / "snapshots" / listing.commit, repository / "blobs"
    return {
        file.path
        for file in listing.files
        if is_whole(snapshot / file.path, file) or (file.blob and is_whole(blobs / file.blob, file))
    }


def discard_cached(files: HubFiles, listing: Listing, path: str, *, cache_dir: Path | None = None) -> None:
    """Removes a file from the Hugging Face cache, so that it is fetched anew: the client asks for no size."""
    repository = _repository_folder(files, cache_dir)
    link = repository / "snapshots" / listing.commit / path
    blobs = [repository / "blobs" / file.blob for file in listing.files if file.path == path and file.blob]
    for found in (link.resolve(), link, *blobs):
        found.unlink(missing_ok=True)


def is_whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and (not file.size or path.stat().st_size == file.size)


def fetch_to_cache(files: HubFiles, *, cache_dir: Path | None = None) -> Path:
    """Downloads what the Hugging Face cache lacks of `files`; their folder there. HubError if it cannot."""
    from huggingface_hub import snapshot_download

    if is_offline():
        raise HubError(
            f"{files.repository} is not complete in the Hugging Face cache (HF_HOME){_together(files)}, and "
            "HF_HUB_OFFLINE forbids to download it"
        )
    listing = list_files(files)
    try:
        snapshot = snapshot_download(
            files.repository,
            revision=files.revision,
            allow_patterns=[file.path for file in listing.files],
            cache_dir=cache_dir,
        )
    except Exception as error:
        raise _hub_error(files, error) from error
    folder = Path(snapshot) / files.subfolder
    if lacks := lacking(files, names_in(folder)):
        raise HubError(f"{files.repository} was not downloaded to the end: there is no {lacks} yet")
    if (other := beside(files)) is not None:
        _fetch_beside(other, folder, cache_dir=cache_dir)
    return folder


def _fetch_beside(files: FilesBeside, folder: Path, *, cache_dir: Path | None) -> None:
    """Copies: a link would break if the other repository were removed from the cache."""
    source = cached(files, cache_dir=cache_dir) or fetch_to_cache(files, cache_dir=cache_dir)
    try:
        _copy(files, source, folder)
    except OSError as error:
        raise HubError(f"{files.repository} cannot be copied to {folder} ({error})") from error


def _copy(files: FilesBeside, source: Path, folder: Path) -> None:
    for name in wanted(files, names_in(source)):
        unfinished = folder / f".{name}.{os.getpid()}"
        try:
            shutil.copyfile(source / name, unfinished)
            unfinished.replace(folder / name)
        finally:
            unfinished.unlink(missing_ok=True)


def _together(files: HubFiles) -> str:
    other = beside(files)
    return f" together with {other.needs[0][0]} of {other.repository}" if other is not None else ""


def fetch_to_folder(files: HubFiles, listing: Listing, paths: Sequence[str], *, folder: Path) -> None:
    """Downloads `paths` into `folder`, going on with what an earlier call began. HubError if it cannot."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            files.repository,
            revision=listing.commit,
            allow_patterns=list(paths),
            local_dir=folder,
        )
    except Exception as error:
        raise _hub_error(files, error) from error


def fetch_again(files: HubFiles, listing: Listing, path: str, *, folder: Path) -> None:
    """Downloads `path` into `folder` as if nothing of it were there. HubError if it cannot."""
    from huggingface_hub import hf_hub_download

    # Two whole copies beside each other may not fit.
    (folder / path).unlink(missing_ok=True)
    try:
        hf_hub_download(
            files.repository, path, revision=listing.commit, local_dir=folder, force_download=True
        )
    except Exception as error:
        raise _hub_error(files, error) from error


def unfinished_files(folder: Path) -> list[Path]:
    """The parts of files that stopped downloads left for a folder that fetch_to_folder fills."""
    return list((folder / ".cache" / "huggingface" / "download").rglob("*.incomplete"))


def unfinished_blobs(files: HubFiles, *, cache_dir: Path | None = None) -> list[Path]:
    """The parts of files that stopped downloads left in the Hugging Face cache."""
    return list((_repository_folder(files, cache_dir) / "blobs").glob("*.incomplete"))


def names_in(folder: Path) -> list[str]:
    """The paths of the files below `folder`, but for hidden folders: the client's own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if not path.parts[0].startswith(".")]


def _hub_file(file: "RepoSibling") -> HubFile:
    blob = file.lfs.sha256 if file.lfs is not None else file.blob_id
    return HubFile(path=file.rfilename, size=file.size or 0, blob=blob or "")


def _inside(files: HubFiles, paths: list[str]) -> list[str]:
    start = f"{files.subfolder}/" if files.subfolder else ""
    return [path.removeprefix(start) for path in paths]


def _repository_folder(files: HubFiles, cache_dir: Path | None) -> Path:
    return (cache_dir or cache_folder()) / files.hub_name


def _hub_error(files: HubFiles, error: Exception) -> HubError:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or (isinstance(error, HfHubHTTPError) and status in (401, 403)):
        return HubError(
            f"{files.repository} may not be downloaded without leave (HTTP {status}): accept its licence at "
            f"{files.terms.page} and set HF_TOKEN to a token of that account"
        )
    logger.debug("%s: %r", files.repository, error)
    if status is None and any(_is_without_answer(each) for each in _chain(error)):
        return UnreachableError(
            f"{files.repository} cannot be downloaded ({endpoint()} cannot be reached: {system_words(error)})"
        )
    reason = str(error.__cause__ or error).strip().splitlines()
    return HubError(
        f"{files.repository} cannot be downloaded ({reason[0] if reason else type(error).__name__})"
    )


def system_words(error: BaseException) -> str:
    """What the system said, below all that the HTTP libraries wrapped around it; else the kind of error."""
    chain = _chain(error)
    of_system = (e for e in reversed(chain) if isinstance(e, OSError) and type(e).__module__ in _SYSTEM)
    said = (each.strerror or str(each) for each in of_system)
    without_answer = [each for each in chain if _is_without_answer(each)]
    return next(filter(None, said), type((without_answer or [error])[-1]).__name__)


def _chain(error: BaseException) -> list[BaseException]:
    """`error` and what is below it."""
    errors = [error]
    while (below := errors[-1].__cause__ or errors[-1].__context__) is not None:
        errors.append(below)
    return errors


def _is_without_answer(error: BaseException) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" in _WITHOUT_ANSWER for kind in type(error).__mro__)
