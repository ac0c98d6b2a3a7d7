"""What `cosmos-nemo doctor` asks of the hub: may this person fetch the files, and how large are they?

Never longer than SECONDS: a repository that has not answered by then is told as such.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cosmos_nemo.checkpoint.released import HubFiles

SECONDS = 20.0
"""For all repositories together, which are asked at once."""


@dataclass(frozen=True)
class Access:
    """What the hub says of one repository; `num_bytes` are those of the wanted files, None if not told."""

    text: str
    is_open: bool = False
    num_bytes: int | None = None


@dataclass(frozen=True)
class Hub:
    """`state` in words; `answers` by repository, {} unless the hub was reached."""

    state: str = "not asked: nothing is missing that it has"
    answers: Mapping[str, Access] = field(default_factory=dict)


class _UnreachableError(Exception):
    """No answer of the hub at all: no network, or one without a way to it."""


def ask_hub(wanted: Sequence["HubFiles"], *, seconds: float = SECONDS) -> Hub:
    """Asks for each repository once. Nothing is fetched, and the token is never shown."""
    from cosmos_nemo.checkpoint.hub import is_offline

    repositories = {files.repository: files for files in wanted}
    if not repositories:
        return Hub()
    if is_offline():
        return Hub(state="not asked: HF_HUB_OFFLINE is set")
    found = _ask_all(list(repositories.values()), seconds)
    reasons = [str(answer) for answer in found.values() if isinstance(answer, _UnreachableError)]
    if not found:
        return Hub(state=f"no answer within {seconds:g} seconds")
    if len(reasons) == len(found):
        return Hub(state=f"cannot be reached ({reasons[0]})")
    late = Access(f"no answer within {seconds:g} seconds")
    answers = {name: found.get(name, late) for name in repositories}
    return Hub(
        state="reached",
        answers={
            name: Access(f"cannot be reached ({answer})") if isinstance(answer, _UnreachableError) else answer
            for name, answer in answers.items()
        },
    )


def _ask_all(wanted: Sequence["HubFiles"], seconds: float) -> dict[str, Access | _UnreachableError]:
    """By repository, what came in time. The threads are daemons: one that hangs holds up nobody."""
    answers: Queue[tuple[str, Access | _UnreachableError]] = Queue()
    for files in wanted:
        threading.Thread(target=_put_answer, args=(files, answers), daemon=True).start()
    found: dict[str, Access | _UnreachableError] = {}
    end = monotonic() + seconds
    while len(found) < len(wanted):
        try:
            name, answer = answers.get(timeout=max(0.0, end - monotonic()))
        except Empty:
            break
        found[name] = answer
    return found


def _put_answer(files: "HubFiles", answers: "Queue[tuple[str, Access | _UnreachableError]]") -> None:
    answer: Access | _UnreachableError
    try:
        answer = _ask(files)
    except _UnreachableError as error:
        answer = error
    except Exception as error:
        answer = Access(f"cannot be told ({type(error).__name__}: {error})")
    answers.put((files.repository, answer))


def _ask(files: "HubFiles") -> Access:
    """A gated repository shows its listing to everyone, so that a file of it is asked for as well."""
    from cosmos_nemo.checkpoint import hub

    num_bytes = None
    try:
        listing = hub.list_files(files)
        num_bytes = listing.size
        hub.check_access(files, listing)
    except hub.HubError as error:
        return Access(_refusal(files, error), num_bytes=num_bytes)
    return Access("may be fetched", is_open=True, num_bytes=num_bytes)


def _refusal(files: "HubFiles", error: Exception) -> str:
    """Why it may not be fetched, and what to do. _UnreachableError if the hub did not say anything."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from cosmos_nemo.checkpoint.hub import system_words

    cause, has_token = error.__cause__, bool(get_token())
    page = files.terms.page
    if cause is None:
        return f"missing: {error}"
    if isinstance(cause, GatedRepoError):
        if has_token:
            return f"gated: the account of the token has no leave yet; accept the licence at {page}"
        return f"gated, and no token is set: accept the licence at {page}, then set HF_TOKEN"
    if isinstance(cause, RepositoryNotFoundError):
        private = "to this token" if has_token else "without a token (HF_TOKEN)"
        return f"missing: the hub shows no such repository {private}"
    if isinstance(cause, RevisionNotFoundError):
        return f"missing: it has no commit {files.revision}"
    if isinstance(cause, HfHubHTTPError):
        status = getattr(cause.response, "status_code", None)
        if status == 401:
            return "the token is not valid (HTTP 401)" if has_token else "no token is set (HF_TOKEN)"
        if status == 403:
            return f"the token may not read it (HTTP 403): give it leave for gated repositories, see {page}"
        return f"the hub does not say (HTTP {status})"
    raise _UnreachableError(system_words(cause))
