"""A hub on this machine, as far as huggingface_hub asks: the listing of a repository, and its files."""

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

SHA = "0123456789abcdef0123456789abcdef01234567"

KEPT = (10 * 2**20, 10 * 2**20 + 1000)
"""Bytes that clients may have of a file that breaks off after the second number: they write pieces of the
first
size, and what they have of the next piece is lost with some versions of urllib3, not with others."""

CLIENT_PATIENCE = 60
"""Seconds that a client waits for the hub's next bytes: the machine may be busy, but nothing else is slow."""

_LARGE = (".pt", ".pth", ".jit", ".bin", ".safetensors")
"""Kept like the large files of the real hub, whose name is the SHA-256 of their content."""


@dataclass(kw_only=True)
class Moods:
    """How the hub misbehaves, and what it was asked. Files are named `owner/repository/path`.

    `gated` repositories send files only to who has a token, `refused` ones to nobody. `cut`: where the next
    transfer of a file breaks off, once. `garbled`: what is sent in place of the content, `times` times.
    `announced`: a size that the listing makes up.
    """

    gated: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    cut: dict[str, int] = field(default_factory=dict)
    garbled: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    announced: dict[str, int] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    ranges: dict[str, str] = field(default_factory=dict)
    """The Range header with which a file was last asked for."""
    revisions: dict[str, str] = field(default_factory=dict)
    """The revision at which a repository was last listed as one object."""


class FakeHub(BaseHTTPRequestHandler):
    """Serves `repositories` (id -> file -> content)."""

    repositories: ClassVar[dict[str, dict[str, bytes]]]
    moods: ClassVar[Moods]

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self._list(self.path.removeprefix("/api/models/").partition("?")[0])
        else:
            self._file(with_body=True)

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def log_message(self, *arguments: object) -> None:
        """Silent: the tests read what the client prints."""

    def _list(self, path: str) -> None:
        """As /revision/ (by default main's) in one object, or as /tree/ file by file."""
        repository, *rest = re.split(r"/(?:revision|tree)/", unquote(path))
        if repository not in self.repositories:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = [
            self._facts(repository, name, content) for name, content in self.repositories[repository].items()
        ]
        if "/tree/" in path:
            entries = [{**facts, "type": "file", "oid": facts["blobId"]} for facts in files]
            return self._send(200, json.dumps(entries).encode(), {})
        self.moods.revisions[repository] = rest[0] if rest else "main"
        siblings = [{**facts, "rfilename": facts["path"]} for facts in files]
        return self._send(200, json.dumps({"id": repository, "sha": SHA, "siblings": siblings}).encode(), {})

    def _facts(self, repository: str, name: str, content: bytes) -> dict[str, object]:
        size = self.moods.announced.get(f"{repository}/{name}", len(content))
        facts: dict[str, object] = {"path": name, "size": size, "blobId": _git_name(content)}
        if name.endswith(_LARGE):
            name_of_content = _etag(name, content)
            facts["lfs"] = {
                "size": size,
                "sha256": name_of_content,
                "oid": name_of_content,
                "pointerSize": 130,
            }
        return facts

    def _file(self, *, with_body: bool) -> None:
        repository, _, name = unquote(self.path).strip("/").partition(f"/resolve/{SHA}/")
        if name not in self.repositories.get(repository, {}):
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if repository in self.moods.refused:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if repository in self.moods.gated and "Authorization" not in self.headers:
            return self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        full = f"{repository}/{name}"
        content = self.repositories[repository][name]
        headers = {"ETag": f'"{_etag(name, content)}"', "X-Repo-Commit": SHA}
        if not with_body:
            return self._send(200, content, headers)
        self.moods.fetched.append(full)
        instead, times = self.moods.garbled.get(full, (content, 0))
        if times:
            self.moods.garbled[full] = (instead, times - 1)
            content = instead
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._send(200, content, headers, cut=self.moods.cut.pop(full, None))
        self.moods.ranges[full] = wanted
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206, content[start:], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self._break_off()

    def _break_off(self) -> None:
        """Ends the body early, and waits for the client to see it: a reset would lose bytes on their way."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(CLIENT_PATIENCE)
        with suppress(OSError):
            while self.connection.recv(4096):
                pass
        self.close_connection = True


def _etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if name.endswith(_LARGE) else _git_name(content)


def _git_name(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # the client opens one connection for each of its threads at once


@contextmanager
def fake_hub(repositories: dict[str, dict[str, bytes]], **moods: object) -> Iterator[tuple[str, Moods]]:
    """Yields the address for HF_ENDPOINT, and the hub's moods, which may be changed meanwhile."""
    state = Moods(**moods)
    handler = type("Handler", (FakeHub,), {"repositories": repositories, "moods": state})
    server = _Server(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
