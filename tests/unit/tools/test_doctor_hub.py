"""What the hub may answer, from a server of this test's own that speaks as the hub does."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import huggingface_hub.constants
import pytest

from cosmos_nemo.checkpoint import hub
from cosmos_nemo.checkpoint.released import HubFiles
from cosmos_nemo.tools.doctor_hub import Hub, ask_hub
from tests.test_layering import ROOT

FILES = "HubFiles(repository='owner/{}', needs=(('model.pt',),), flag='--f', model='m')"
PROGRAM = """
import json
from cosmos_nemo.checkpoint.released import HubFiles
from cosmos_nemo.tools.doctor_hub import ask_hub
found = ask_hub([{files}], seconds={seconds})
answers = {{name: [a.text, a.is_open, a.num_bytes] for name, a in found.answers.items()}}
print(json.dumps([found.state, answers]))
"""
COMMIT = "0" * 40


class Answers(BaseHTTPRequestHandler):
    """By the repository's name: (status, error code) of its listing and of its files."""

    said: ClassVar = {
        "open": ((200, ""), (200, "")),
        "gated": ((200, ""), (401, "GatedRepo")),
        "waiting": ((200, ""), (403, "GatedRepo")),
        "nowhere": ((401, "RepoNotFound"), (401, "RepoNotFound")),
        "forbidden": ((200, ""), (403, "")),
        "broken": ((503, ""), (503, "")),
        "no-commit": ((404, "RevisionNotFound"), (200, "")),
        "empty": ((200, ""), (200, "")),
        "hanging": ((0, ""), (0, "")),
        "bad-token": ((401, ""), (401, "")),
    }

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/models/").split("/")[1]
        listing, _ = self.said[name]
        names = [] if name == "empty" else [{"rfilename": "model.pt", "size": 3 * 2**30}]
        self.reply(*listing, json.dumps({"id": f"owner/{name}", "sha": COMMIT, "siblings": names}))

    def do_HEAD(self) -> None:
        self.reply(*self.said[self.path.split("/")[2]][1], "")

    def reply(self, status: int, code: str, body: str) -> None:
        if not status:
            time.sleep(60)
            return
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "ETag": '"e"', "Content-Length": str(len(body))}
        if code:
            headers["X-Error-Code"] = code
        if status == 401 and not code:
            headers["X-Error-Message"] = "Invalid credentials in Authorization header"
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(endpoint: str, *names: str, token: str = "", seconds: float = 20) -> tuple[str, Any, float]:
    """`ask_hub` in a process of its own (the client reads its endpoint on import), and how long it ran."""
    program = PROGRAM.format(files=", ".join(map(FILES.format, names)), seconds=seconds)
    started = time.monotonic()
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    state, answers = json.loads(done.stdout.splitlines()[-1])
    return state, answers, time.monotonic() - started


def test_without_a_token_each_repository_is_told_in_words(endpoint: str) -> None:
    state, answers, _ = asked(endpoint, "open", "gated", "nowhere", "broken", "no-commit", "empty")
    assert state == "reached"
    assert answers["owner/open"] == ["may be fetched", True, 3 * 2**30]
    text, is_open, size = answers["owner/gated"]
    assert (is_open, size) == (False, 3 * 2**30)
    page = "https://huggingface.co/owner/gated"
    assert text == f"gated, and no token is set: accept the licence at {page}, then set HF_TOKEN"
    assert (
        answers["owner/nowhere"][0] == "missing: the hub shows no such repository without a token (HF_TOKEN)"
    )
    assert answers["owner/broken"][0] == "the hub does not say (HTTP 503)"
    assert answers["owner/no-commit"][0] == "missing: it has no commit None"
    assert answers["owner/empty"][0] == "missing: owner/empty on the hub has no model.pt"
    assert sum(is_open for _, is_open, _ in answers.values()) == 1


def test_with_a_token_its_account_lacks_leave_or_the_token_is_wrong(endpoint: str) -> None:
    _, answers, _ = asked(endpoint, "waiting", "nowhere", "forbidden", "bad-token", token="hf_secret")
    page = "https://huggingface.co/owner"
    assert answers["owner/waiting"][0] == (
        f"gated: the account of the token has no leave yet; accept the licence at {page}/waiting"
    )
    assert answers["owner/nowhere"][0] == "missing: the hub shows no such repository to this token"
    assert answers["owner/forbidden"][0].startswith("the token may not read it (HTTP 403)")
    assert answers["owner/bad-token"][0] == "the token is not valid (HTTP 401)"


def test_a_repository_that_hangs_holds_up_nobody(endpoint: str) -> None:
    state, answers, took = asked(endpoint, "open", "hanging", seconds=3)
    assert state == "reached" and took < 30
    assert answers["owner/open"][1] is True
    assert answers["owner/hanging"] == ["no answer within 3 seconds", False, None]


def test_a_hub_that_never_answers_is_a_line(endpoint: str) -> None:
    state, answers, took = asked(endpoint, "hanging", seconds=0.5)
    assert (state, answers) == ("no answer within 0.5 seconds", {}) and took < 30


def test_without_a_network_there_is_one_line_with_the_systems_own_words() -> None:
    state, answers, _ = asked("http://127.0.0.1:9", "open", "gated")
    assert (state, answers) == ("cannot be reached (Connection refused)", {})


def wanted(name: str) -> HubFiles:
    return HubFiles(repository=f"owner/{name}", needs=(("model.pt",),), flag="--f", model="m")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def replaced(monkeypatch: pytest.MonkeyPatch, call: Callable[[HubFiles], object]) -> None:
    monkeypatch.setattr(hub, "list_files", call)


def test_nobody_is_asked_for_nothing_or_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: HubFiles) -> None:
        raise AssertionError("asked")

    replaced(monkeypatch, fail)
    assert ask_hub([]) == Hub()
    assert ask_hub([wanted("a")]) == Hub(state="not asked: HF_HUB_OFFLINE is set")


def test_a_repository_of_several_cards_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, online: None
) -> None:
    names: list[str] = []

    def record(files: HubFiles) -> None:
        names.append(files.repository)
        raise hub.HubError("no")

    replaced(monkeypatch, record)
    assert list(ask_hub([wanted("a"), wanted("b"), wanted("a")]).answers) == ["owner/a", "owner/b"]
    assert sorted(names) == ["owner/a", "owner/b"]


def test_one_that_is_out_of_reach_beside_one_that_answers_is_told(
    monkeypatch: pytest.MonkeyPatch, online: None
) -> None:
    def half(files: HubFiles) -> None:
        if files.repository == "owner/a":
            raise hub.HubError("it lacks a file")
        raise hub.HubError("x") from OSError(101, "Network is unreachable")

    replaced(monkeypatch, half)
    found = ask_hub([wanted("a"), wanted("b")])
    assert found.state == "reached"
    assert [answer.text for answer in found.answers.values()] == [
        "missing: it lacks a file",
        "cannot be reached (Network is unreachable)",
    ]


def test_an_error_of_another_kind_is_told_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, online: None
) -> None:
    def fail(_: HubFiles) -> None:
        raise KeyError("siblings")

    replaced(monkeypatch, fail)
    assert ask_hub([wanted("a")]).answers["owner/a"].text == "cannot be told (KeyError: 'siblings')"
