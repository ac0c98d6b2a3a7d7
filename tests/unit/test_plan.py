import pytest

from cosmos_nemo.plan import Plan, make_plan, num_ranks_taking_part, shares_of
from cosmos_nemo.request import RequestError, Setup


def _plan(num_devices: int, **changes: object) -> Plan:
    return make_plan(**{"num_devices": num_devices, "num_heads": 32, "num_branches": 2, **changes})  # type: ignore[arg-type]


def test_one_rank_splits_nothing() -> None:
    assert _plan(1) == Plan()


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_the_seed_commands_cp_size_equal_to_num_devices_is_kept(num_devices: int) -> None:
    assert _plan(num_devices, cp_size=num_devices) == Plan(cp=num_devices)


@pytest.mark.parametrize(("num_devices", "cp"), [(2, 1), (4, 2), (8, 4), (6, 3)])
def test_without_cp_size_an_even_number_of_ranks_halves_the_branches(num_devices: int, cp: int) -> None:
    assert _plan(num_devices) == Plan(cfg=2, cp=cp)


def test_without_cp_size_an_odd_number_of_ranks_is_context_parallel() -> None:
    assert _plan(3) == Plan(cp=3)


def test_a_given_cp_size_leaves_the_other_half_to_the_branches() -> None:
    assert _plan(8, cp_size=4) == Plan(cfg=2, cp=4)


def test_one_branch_is_never_halved() -> None:
    assert _plan(8, num_branches=1) == Plan(cp=8)


def test_cfg_parallel_off_gives_all_ranks_to_context_parallel() -> None:
    assert _plan(8, cfg_parallel="off") == Plan(cp=8)


def test_tensor_parallel_takes_its_ranks_first() -> None:
    assert _plan(8, tensor_parallel=4) == Plan(cfg=2, tp=4)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"tensor_parallel": 3}, "--tensor_parallel 3"),
        ({"tensor_parallel": 0}, "--tensor_parallel 0"),
        ({"tensor_parallel": -2}, "--tensor_parallel -2"),
        ({"cp_size": 0}, "--cp_size 0"),
        ({"cp_size": 3}, "--cp_size 3"),
        ({"cp_size": 16}, "--cp_size 16"),
        ({"cp_size": 8, "tensor_parallel": 2}, "--tensor_parallel 2"),
        ({"cp_size": 8, "cfg_parallel": "on"}, "--cfg_parallel on"),
        ({"cfg_parallel": "on", "num_branches": 1}, "--cfg_parallel on"),
        ({"tensor_parallel": 16}, "--tensor_parallel 16"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_ranks_are_refused_by_name(
    changes: dict[str, object], flag: str
) -> None:
    with pytest.raises(RequestError) as refused:
        _plan(8, **changes)
    assert flag in str(refused.value)


def test_cfg_parallel_on_needs_an_even_number_of_ranks() -> None:
    with pytest.raises(RequestError, match="--cfg_parallel on"):
        _plan(3, cfg_parallel="on")


def test_the_number_of_ranks_is_the_product() -> None:
    assert Plan(cfg=2, cp=3, tp=4).num_ranks == 24


@pytest.mark.parametrize(("num_devices", "num_ranks"), [(None, 8), (1, 1), (8, 8)])
def test_all_started_ranks_take_part_unless_num_devices_says_less(
    num_devices: int | None, num_ranks: int
) -> None:
    assert num_ranks_taking_part(Setup(model="x", num_devices=num_devices), 8) == num_ranks


@pytest.mark.parametrize("num_devices", [0, -1, 9])
def test_more_ranks_than_started_or_none_are_refused(num_devices: int) -> None:
    with pytest.raises(RequestError, match=f"--num_devices {num_devices}"):
        num_ranks_taking_part(Setup(model="x", num_devices=num_devices), 8)


def test_a_dry_run_pretends_the_ranks_that_the_flags_ask_for() -> None:
    setup = Setup(model="x", cp_size=4, tensor_parallel=2, cfg_parallel="on")
    assert num_ranks_taking_part(setup, 1, pretend=True) == 16
    assert num_ranks_taking_part(Setup(model="x", num_devices=64), 1, pretend=True) == 64


@pytest.mark.parametrize(
    ("sizes", "plan"),
    [
        ({}, Plan(replicas=2, cfg=2, cp=2)),
        ({"cp_size": 4}, Plan(replicas=2, cp=4)),
        ({"tensor_parallel": 2}, Plan(replicas=2, cfg=2, tp=2)),
        ({"num_branches": 1}, Plan(replicas=2, cp=4)),
    ],
)
def test_replicas_get_equal_shares_of_the_ranks(sizes: dict[str, int], plan: Plan) -> None:
    made = _plan(8, replicas=2, **sizes)
    assert made == plan
    assert (made.num_ranks, made.ranks_per_replica) == (8, 4)
    assert str(made).startswith("2 replicas x guidance branches")


def test_replicas_that_do_not_divide_the_ranks_are_refused() -> None:
    with pytest.raises(RequestError, match=r"--replicas 3 does not divide the 8 rank"):
        _plan(8, replicas=3)


def test_a_dry_run_counts_the_ranks_of_all_replicas() -> None:
    setup = Setup(model="x", replicas=2, cp_size=2, cfg_parallel="on")
    assert num_ranks_taking_part(setup, 1, pretend=True) == 8


@pytest.mark.parametrize(
    ("length", "ranks", "expected"),
    [
        (16, 8, [2] * 8),
        (16, 3, [6, 5, 5]),
        (5, 4, [3, 2, 0, 0]),
        (1, 2, [1, 0]),
        (3, 1, [3]),
    ],
)
def test_no_piece_is_shorter_than_what_a_convolution_looks_back(
    length: int, ranks: int, expected: list[int]
) -> None:
    assert shares_of(length, ranks, least=2) == expected
