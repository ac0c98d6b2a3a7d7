"""A hub on this machine, as far as huggingface_hub asks: the listing of a repository, and its files."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

SHA = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """Serves `repositories` (id -> file -> content); those in `gated` only to who sends a token."""

    repositories: ClassVar[dict[str, dict[str, bytes]]]
    gated: ClassVar[frozenset[str]]
    fetched: ClassVar[list[str]]

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
        repository = "/".join(path.split("/")[:2])
        if repository not in self.repositories:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = self.repositories[repository]
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in files.items()
            ]
            return self._send(200, json.dumps(entries).encode(), {})
        siblings = [{"rfilename": name} for name in files]
        return self._send(200, json.dumps({"id": repository, "sha": SHA, "siblings": siblings}).encode(), {})

    def _file(self, *, with_body: bool) -> None:
        repository, _, name = self.path.strip("/").partition(f"/resolve/{SHA}/")
        if repository in self.gated and "Authorization" not in self.headers:
            return self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        content = self.repositories[repository][name]
        if with_body:
            self.fetched.append(f"{repository}/{name}")
        return self._send(
            200, content, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": SHA}, with_body=with_body
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def fake_hub(
    repositories: dict[str, dict[str, bytes]], *, gated: frozenset[str] = frozenset()
) -> Iterator[tuple[str, list[str]]]:
    """Yields the address for HF_ENDPOINT, and the list of the files that were fetched from it so far."""
    fetched: list[str] = []
    handler = type("Handler", (FakeHub,), {"repositories": repositories, "gated": gated, "fetched": fetched})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
