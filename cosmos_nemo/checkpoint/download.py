"""What the download doors do: look first at everything, then fetch it, one repository after the other.

Nothing is fetched before the licence terms are said and the disk is known to hold all of it. A repository
that fails does not stop the others.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cosmos_nemo.checkpoint import hub, verified
from cosmos_nemo.checkpoint.hub import HubError, HubFile, Listing, UnreachableError
from cosmos_nemo.checkpoint.released import HubFiles, lacking
from cosmos_nemo.checkpoint.released import wanted as wanted_of

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

_MAX_LISTED = 40
_SHA256_LENGTH = 64
"""Hex digits; a small file is called by a shorter sum, of git's kind."""


class Place(Protocol):
    """Where downloads go."""

    @property
    def root(self) -> Path: ...

    @property
    def flag(self) -> str:
        """The flag or variable that chooses `root`."""

    def name(self, files: HubFiles) -> Path:
        """Where `files` go, for people."""

    def missing(self, files: HubFiles, listing: Listing) -> list[HubFile]:
        """The files that are not there in their size."""

    def unfinished(self, files: HubFiles) -> list[Path]:
        """The parts of files that are there."""

    def fetch(self, files: HubFiles, listing: Listing) -> None:
        """Downloads what is missing and checks what is there; HubError if it cannot."""

    def complaint(self, files: HubFiles) -> str:
        """What is wrong with the copy, judged without the hub; "" if it is complete."""


@dataclass(frozen=True, kw_only=True)
class AssetsFolder:
    """A folder with one folder per repository, in which the files lie as they are on the hub."""

    root: Path
    flag: str = "--checkpoint_dir"

    def name(self, files: HubFiles) -> Path:
        return self.root / files.assets_name

    def missing(self, files: HubFiles, listing: Listing) -> list[HubFile]:
        return [file for file in listing.files if not hub.is_whole(self.name(files) / file.path, file)]

    def unfinished(self, files: HubFiles) -> list[Path]:
        return hub.unfinished_files(self.name(files))

    def fetch(self, files: HubFiles, listing: Listing) -> None:
        folder, sums = self.name(files), _sums(files, listing)
        for file in self.missing(files, listing):
            # The client takes a file for whole if it is no newer than the client's own record of it.
            if (folder / file.path).is_file():
                hub.fetch_again(files, listing, file.path, folder=folder)
        if missing := self.missing(files, listing):
            hub.fetch_to_folder(files, listing, [file.path for file in missing], folder=folder)
        for wrong in verified.mismatches(folder, sums):
            logger.warning("%s: downloading it again", wrong)
            hub.fetch_again(files, listing, wrong.path.relative_to(folder).as_posix(), folder=folder)
        if still := verified.mismatches(folder, sums):
            raise HubError(f"{files.repository} was downloaded twice, but {_set_aside(still)}")
        if missing := self.missing(files, listing):
            raise _unfinished(files, folder, missing[0])
        verified.note_complete(folder, [file.path for file in listing.files])

    def complaint(self, files: HubFiles) -> str:
        folder = self.name(files)
        names = hub.names_in(folder) if folder.is_dir() else []
        if lacks := lacking(files, names):
            return f"there is no {lacks} in {folder}"
        if not verified.is_noted_complete(folder) and self.unfinished(files):
            return f"{folder} was not downloaded to the end"
        noted = verified.noted_hashes(folder)
        own = {path: noted[path] for path in wanted_of(files, noted)}
        if wrong := verified.mismatches(folder, own | _md5(files, names)):
            return "; ".join(str(one) for one in wrong)
        return ""


@dataclass(frozen=True, kw_only=True)
class HubCache:
    """The Hugging Face cache, where inference looks by itself."""

    root: Path
    flag: str = "HF_HOME"

    def name(self, files: HubFiles) -> Path:
        return self.root / files.hub_name

    def missing(self, files: HubFiles, listing: Listing) -> list[HubFile]:
        there = hub.cached_paths(files, listing, cache_dir=self.root)
        return [file for file in listing.files if file.path not in there]

    def unfinished(self, files: HubFiles) -> list[Path]:
        return hub.unfinished_blobs(files, cache_dir=self.root)

    def fetch(self, files: HubFiles, listing: Listing) -> None:
        inside = f"snapshots/{listing.commit}/"
        sums = {f"{inside}{path}": sum_ for path, sum_ in _sums(files, listing).items()}
        for file in self.missing(files, listing):
            hub.discard_cached(files, listing, file.path, cache_dir=self.root)
        hub.fetch_to_cache(files, cache_dir=self.root)
        if wrong := verified.mismatches(self.name(files), sums):
            for one in wrong:
                logger.warning("%s: downloading it again", one)
                path = one.path.relative_to(self.name(files) / inside).as_posix()
                hub.discard_cached(files, listing, path, cache_dir=self.root)
            hub.fetch_to_cache(files, cache_dir=self.root)
        if still := verified.mismatches(self.name(files), sums):
            raise HubError(f"{files.repository} was downloaded twice, but {_set_aside(still)}")
        if missing := self.missing(files, listing):
            raise _unfinished(files, self.name(files) / inside, missing[0])

    def complaint(self, files: HubFiles) -> str:
        if hub.cached(files, cache_dir=self.root) is None:
            return f"it is not in {self.name(files)}, or not all of it"
        if self.unfinished(files):
            return f"{self.name(files)} was not downloaded to the end"
        return "; ".join(str(one) for one in verified.mismatches(self.name(files), self._known_sums(files)))

    def _known_sums(self, files: HubFiles) -> dict[str, str]:
        """Without asking the hub."""
        folder, snapshot = self.name(files), hub.cached_snapshot(files, cache_dir=self.root)
        assert snapshot is not None
        inside = f"{snapshot.relative_to(folder).as_posix()}/"
        noted = verified.noted_hashes(folder)
        noted = {path: noted[path] for path in noted if path.startswith(inside)}
        return noted | {f"{inside}{path}": sum_ for path, sum_ in files.md5.items()}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One repository before anything is fetched: its listing, or why there is none."""

    files: HubFiles
    listing: Listing | None = None
    missing: tuple[HubFile, ...] = ()
    num_bytes: int = 0
    """Still to be fetched."""
    problem: str = ""
    """Why it cannot be made complete; without a listing and a problem it is complete as it is."""
    is_unreachable: bool = False
    """The problem is that the hub did not answer."""

    @property
    def complaint(self) -> str:
        """The problem with the repository's name before it."""
        name = self.files.repository
        return self.problem if self.problem.startswith(name) else f"{name}: {self.problem}"


def download(wanted: Sequence[HubFiles], place: Place, *, dry_run: bool, say: Say, warn: Say) -> int:
    """Brings `wanted` to `place`; the exit status: 0 if all of it is there (in a dry run: can be), else 1."""
    _say_terms(wanted, say)
    found = [_look(files, place) for files in wanted]
    for one in found:
        _say_found(one, place, say, warn, in_full=dry_run)
    fits = _say_total(found, place, say, warn)
    if dry_run or not fits:
        _say_ways_to_the_hub(found, warn)
        return 0 if fits and not any(one.problem for one in found) else 1
    ended = [_fetch(one, place, say, warn) for one in found]
    status = _say_end(ended, place, say, warn)
    _say_ways_to_the_hub(ended, warn)
    return status


def size_text(num_bytes: int) -> str:
    """As people say it: 14.4 GB, 3.2 MB, 217 bytes."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes} bytes"


def free_bytes(folder: Path) -> int:
    """Of the disk on which `folder` lies or would be made."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _look(files: HubFiles, place: Place) -> Found:
    if hub.is_offline():
        complaint = place.complaint(files)
        return Found(files=files, problem=f"{complaint}, and HF_HUB_OFFLINE is set" if complaint else "")
    listing = None
    try:
        listing = hub.list_files(files)
        missing = tuple(place.missing(files, listing))
        if missing:
            hub.check_access(files, listing)
    except HubError as error:
        if not place.complaint(files):  # what is complete needs no leave of the hub
            return Found(files=files, listing=listing)
        return Found(files=files, listing=listing, **_problem(error))
    begun = sum(part.stat().st_size for part in place.unfinished(files))
    num_bytes = max(0, sum(file.size for file in missing) - begun)
    return Found(files=files, listing=listing, missing=missing, num_bytes=num_bytes)


def _fetch(found: Found, place: Place, say: Say, warn: Say) -> Found:
    """`found` with the problem that came up, if one did."""
    if found.problem or found.listing is None:
        return found
    if found.missing:
        say(f"{found.files.repository}: {size_text(found.num_bytes)} -> {place.name(found.files)}")
    try:
        place.fetch(found.files, found.listing)
    except (HubError, OSError) as error:
        failed = replace(found, **_problem(error))
        warn(f"{failed.complaint}.")
        return failed
    return found


def _problem(error: Exception) -> dict[str, Any]:
    """The fields of Found that tell of `error`."""
    return {"problem": str(error), "is_unreachable": isinstance(error, UnreachableError)}


def _say_terms(wanted: Sequence[HubFiles], say: Say) -> None:
    terms = [files.terms for files in wanted]
    say("Licence terms to accept once, with the account of HF_TOKEN (the hub sends nothing before):")
    for one in terms:
        if one.accept:
            say(f"  {one.page} ({one.name})")
    free = [f"{f.repository} ({t.name})" for f, t in zip(wanted, terms, strict=True) if not t.accept]
    say(f"Nothing to accept: {', '.join(free)}")


def _say_found(found: Found, place: Place, say: Say, warn: Say, *, in_full: bool) -> None:
    files, listing = found.files, found.listing
    if found.problem:
        warn(f"{found.complaint}.")
    elif listing is None:
        say(f"{files.repository}: complete in {place.name(files)}")
    else:
        state = f"{size_text(found.num_bytes)} to fetch" if found.missing else "all there"
        count = "1 file" if len(listing.files) == 1 else f"{len(listing.files):,} files"
        say(f"{files.repository}: {count}, {size_text(listing.size)}, {state} -> {place.name(files)}")
    if in_full and listing is not None:
        missing = {file.path for file in found.missing}
        for file in listing.files[:_MAX_LISTED]:
            there = "" if file.path in missing else "  (there)"
            say(f"  {size_text(file.size):>12}  {file.path}{there}")
        if rest := listing.files[_MAX_LISTED:]:
            say(f"  {size_text(sum(file.size for file in rest)):>12}  in {len(rest):,} more files")


def _say_total(found: Sequence[Found], place: Place, say: Say, warn: Say) -> bool:
    """Whether the disk holds what is to be fetched."""
    total = sum(one.listing.size for one in found if one.listing is not None)
    needed, free = sum(one.num_bytes for one in found), free_bytes(place.root)
    say(
        f"Total: {size_text(total)}, of which {size_text(needed)} to fetch; "
        f"{size_text(free)} free where {place.root} lies"
    )
    if needed <= free:
        return True
    warn(
        f"The disk lacks {size_text(needed - free)}: nothing is fetched. Make room, choose another disk with "
        f"{place.flag}, or fetch fewer models."
    )
    return False


def _say_end(ended: Sequence[Found], place: Place, say: Say, warn: Say) -> int:
    incomplete = [one for one in ended if one.problem]
    if not incomplete:
        say(f"Everything is in {place.root}")
        return 0
    warn(f"Missing, of {len(ended)} repositories (the same command goes on where this one stopped):")
    for one in incomplete:
        warn(f"  {one.complaint}")
    return 1


def _say_ways_to_the_hub(found: Sequence[Found], warn: Say) -> None:
    if any(one.is_unreachable for one in found):
        warn(
            f"No answer from {hub.endpoint()}: is there a network, or a proxy to name with HTTPS_PROXY? "
            "HF_ENDPOINT names a mirror; HF_HUB_OFFLINE=1 asks nobody and checks what is here."
        )


def _sums(files: HubFiles, listing: Listing) -> dict[str, str]:
    """By path: the published MD5, else the SHA-256 by which the hub calls a large file."""
    hashes = {file.path: file.blob for file in listing.files if len(file.blob) == _SHA256_LENGTH}
    return hashes | _md5(files, [file.path for file in listing.files])


def _md5(files: HubFiles, paths: Sequence[str]) -> dict[str, str]:
    return {path: md5 for path, md5 in files.md5.items() if path in paths}


def _unfinished(files: HubFiles, folder: Path, file: HubFile) -> HubError:
    path = folder / file.path
    state = f"has {path.stat().st_size:,} of {file.size:,} bytes" if path.is_file() else "is missing"
    return HubError(f"{files.repository} was not downloaded to the end: {file.path} {state}")


def _set_aside(wrong: Sequence[verified.Mismatch]) -> str:
    """Renames the files, so that no run takes them for the published ones; what to say of it."""
    told = []
    for one in wrong:
        aside = one.path.with_name(f"{one.path.name}.wrong-{one.algorithm}")
        one.path.replace(aside)
        told.append(f"{one}; it is now {aside.name}")
    return "; ".join(told)
