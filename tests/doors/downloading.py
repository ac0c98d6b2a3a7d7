"""Runs a download door as a person does, but for the published sums, which no made-up file has."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.doors.fake_hub import CLIENT_PATIENCE

ROOT = Path(__file__).parents[2]
NO_HUB = "http://127.0.0.1:9"

_WITH_OTHER_SUMS = """
import json, os, runpy, sys
from cosmos_nemo.checkpoint import released
released._MD5 = json.loads(os.environ.pop("SUMS"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_door(
    name: str,
    *arguments: str,
    endpoint: str = NO_HUB,
    sums: dict[str, dict[str, str]] | None = None,
    cwd: Path = ROOT / "tests",
    **variables: str,
) -> tuple[int, str]:
    """Exit status and all that was printed; `variables` are the only HF_ ones beside the address.

    `sums` stand for the published ones; None leaves those.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    patience = dict.fromkeys(("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"), str(CLIENT_PATIENCE))
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **patience, **variables}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])
    program = [sys.executable]
    if sums is not None:
        program += ["-c", _WITH_OTHER_SUMS]
        environment["SUMS"] = json.dumps(sums)
    done = subprocess.run(
        [*program, str(ROOT / "download" / name), *arguments],
        env=environment,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=180,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout
