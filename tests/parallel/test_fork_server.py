"""Copies of a process that has imported everything are like the processes that they stand for."""

import json
import signal
from pathlib import Path

import pytest

from tests.parallel import launcher

_TELLS = """
import json, os, random, sys
import numpy, torch
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__,
    "rank": os.environ["RANK"], "folder": os.getcwd(),
    "threads": len(os.listdir("/proc/self/task")), "cuda": torch.cuda.is_initialized(),
    "seeds": [random.random(), numpy.random.random(), hash("a")],
}))
print("told", file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def ended_with(script: Path, text: str) -> launcher.Ended:
    script.write_text(text)
    (one,) = launcher.wait_for(launcher.start_ranks(1, script))
    return one


def test_a_script_finds_what_an_interpreter_would_give_it(script: Path) -> None:
    script.write_text(_TELLS)
    for rank, one in enumerate(launcher.run_ranks(2, script, "a", "b c")):
        told = json.loads(one.out)
        assert told["argv"] == [str(script), "a", "b c"] and told["path"] == str(script.parent)
        assert (told["name"], told["rank"], told["folder"]) == ("__main__", str(rank), str(Path.cwd()))
        assert (told["threads"], told["cuda"]) == (1, False)
        assert one.err == "told\n"


def test_two_ranks_begin_with_other_random_numbers_and_other_orders_of_sets(script: Path) -> None:
    """Else a rank that forgets to seed would agree with its neighbours here, and nowhere else."""
    script.write_text(_TELLS)
    ours, theirs = (json.loads(one.out)["seeds"] for one in launcher.run_ranks(2, script))
    assert all(one != other for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("raise OSError('disk')", 1, "OSError: disk\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import atexit, sys; atexit.register(lambda: sys.stderr.write('left'))", 0, "left"),
    ],
)
def test_it_ends_as_an_interpreter_ends(script: Path, text: str, status: int, says: str) -> None:
    one = ended_with(script, text)
    assert one.status == status and one.err.endswith(says), one.err


def test_a_script_that_hangs_is_killed(script: Path) -> None:
    script.write_text("import time\nprint('here', flush=True)\ntime.sleep(1000)\n")
    (rank,) = launcher.start_ranks(1, script)
    rank.wait_until_it_says("here")
    with pytest.raises(Exception, match="timed out"):
        launcher.wait_for([rank], timeout=0.1)
    assert rank.process.returncode == -signal.SIGKILL


def test_a_variable_that_was_read_before_cannot_be_changed(script: Path) -> None:
    with pytest.raises(AssertionError, match="HF_HOME comes too late"):
        launcher.start(script, environment=launcher.clean_environment(HF_HOME="elsewhere"))


def test_no_port_is_given_twice() -> None:
    ports = [launcher.free_port() for _ in range(50)]
    assert len(set(ports)) == 50 and all(port < 32_768 for port in ports)
