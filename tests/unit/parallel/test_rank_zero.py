"""Four threads' worth of ranks would share one process group, so real processes: one script, all cases."""

import json

import pytest

from tests.parallel import launcher

SCRIPT = """
import json, os
import torch, torch.distributed as dist
from cosmos_nemo.parallel.rank_zero import everywhere, only_rank_zero, rank_zero

class Local(Exception):
    def __init__(self, a, b):  # does not survive pickling
        super().__init__(f"{a} and {b}")

def outcome(call):
    try:
        value = call()
        return value.tolist() if isinstance(value, torch.Tensor) else value
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def raising(error):
    def work():
        raise error
    return work

def fails_on_1():
    if rank == 1:
        raise OSError("disk")

dist.init_process_group("gloo")
world, rank = dist.group.WORLD, dist.get_rank()
calls = []
found = {
    "object": outcome(lambda: rank_zero(lambda: calls.append(1) or {"from": rank}, world)),
    "tensor": outcome(lambda: rank_zero(lambda: torch.full((2, 2), 5.0 + rank, dtype=torch.bfloat16), world)),
    "none": outcome(lambda: rank_zero(lambda: None, world)),
    "error": outcome(lambda: rank_zero(raising(KeyError("gone")), world)),
    "local_error": outcome(lambda: rank_zero(raising(Local(1, 2)), world)),
    "only": outcome(lambda: only_rank_zero(lambda: rank + 10, world)),
    "only_error": outcome(lambda: only_rank_zero(raising(ValueError("no")), world)),
    "everywhere": outcome(lambda: everywhere(lambda: rank, world)),
    "everywhere_error": outcome(lambda: everywhere(fails_on_1, world)),
    "calls": len(calls),
}
print(json.dumps(found), flush=True)
dist.barrier()
os._exit(0)  # gloo's teardown at exit was seen to abort
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    script = tmp_path_factory.mktemp("rank_zero") / "script.py"
    script.write_text(SCRIPT)
    ended = launcher.run_ranks(3, script)
    return [json.loads(one.out.splitlines()[-1]) for one in ended]


@pytest.mark.parametrize(
    ("case", "value"),
    [
        ("object", {"from": 0}),
        ("tensor", [[5.0, 5.0], [5.0, 5.0]]),
        ("none", None),
        ("error", "KeyError: 'gone'"),
        ("only_error", "ValueError: no"),
        ("everywhere_error", "OSError: disk"),
    ],
)
def test_every_rank_gets_the_same(found: list[dict[str, object]], case: str, value: object) -> None:
    assert [one[case] for one in found] == [value] * 3


def test_an_exception_that_cannot_travel_still_says_what_happened(found: list[dict[str, object]]) -> None:
    assert all("1 and 2" in str(one["local_error"]) for one in found)


def test_rank_zero_alone_works(found: list[dict[str, object]]) -> None:
    assert [one["calls"] for one in found] == [1, 0, 0]


def test_only_rank_zero_keeps_the_value_there(found: list[dict[str, object]]) -> None:
    assert [one["only"] for one in found] == [10, None, None]


def test_everywhere_keeps_each_ranks_own_value(found: list[dict[str, object]]) -> None:
    assert [one["everywhere"] for one in found] == [0, 1, 2]
