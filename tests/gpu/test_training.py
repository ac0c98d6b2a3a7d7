"""On GPUs Megatron's distributed update trains as the replicated one does, on one and on two.

On the CPU, where Megatron's does not run, the replicated one is held to 1e-6 (tests/parallel).
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.parallel import launcher
from tests.parallel import train_worker as worker
from tests.parallel.train_worker import Case

pytestmark = pytest.mark.gpu
SCRIPT = Path(worker.__file__)
TP2, CP2 = {"tensor_parallel": 2}, {"context_parallel": 2}
REPLICATED, DISTRIBUTED = {"optimizer": "replicated"}, {"optimizer": "distributed"}
AVERAGED = {"average": "sharded", "average_decay": 0.5, "warmup_steps": 3}
RESUME = {"resume": True}
MOMENTS = ("master", "exp_avg", "exp_avg_sq", "average")


def _of_two_gpus(**settings: object) -> dict[str, object]:
    return {**DISTRIBUTED, **AVERAGED, **settings}


ON_ONE = (
    Case(name="replicated", settings=REPLICATED),
    Case(name="distributed", settings=DISTRIBUTED),
    Case(name="not_clipped", settings={**REPLICATED, "clip_norm": 0.0}),
    Case(name="not_clipped_distributed", settings={**DISTRIBUTED, "clip_norm": 0.0}),
    Case(name="bf16", dtype="bfloat16", settings=REPLICATED),
    Case(name="bf16_distributed", dtype="bfloat16", settings=DISTRIBUTED),
    Case(name="host", settings={**REPLICATED, **AVERAGED, "average": "host"}),
    Case(name="averaged", settings={**REPLICATED, **AVERAGED}),
    Case(name="six_on_one", settings={**REPLICATED, **AVERAGED, "num_steps": 6}),
)
SAME_ON_TWO = (
    Case(name="dp2", num_ranks=2, settings=DISTRIBUTED),
    Case(name="cp2", num_ranks=2, settings={**DISTRIBUTED, **CP2}),
    Case(name="tp2", num_ranks=2, settings={**DISTRIBUTED, **TP2}),
    Case(name="tp2_replicated", num_ranks=2, settings={**REPLICATED, **TP2}),
    Case(name="dp2_replicated", num_ranks=2, settings=REPLICATED),
)
ON_TWO = (
    *SAME_ON_TWO,
    Case(name="bf16_dp2", num_ranks=2, dtype="bfloat16", settings=DISTRIBUTED),
    Case(name="six", num_ranks=2, settings=_of_two_gpus(num_steps=6)),
    Case(name="three", num_ranks=2, settings=_of_two_gpus(num_steps=3)),
    Case(name="to_one", num_ranks=2, settings=_of_two_gpus(num_steps=3)),
    Case(name="bf16_six", num_ranks=2, dtype="bfloat16", settings=_of_two_gpus(num_steps=6)),
    Case(name="bf16_three", num_ranks=2, dtype="bfloat16", settings=_of_two_gpus(num_steps=3)),
)
RESUMED_ON_TWO = (
    Case(
        name="three_and_three",
        num_ranks=2,
        log="three",
        settings=_of_two_gpus(num_steps=6),
        run=RESUME,
    ),
    Case(
        name="bf16_three_and_three",
        num_ranks=2,
        log="bf16_three",
        dtype="bfloat16",
        settings=_of_two_gpus(num_steps=6),
        run=RESUME,
    ),
)
RESUMED_ON_ONE = (
    Case(name="two_then_one", log="to_one", settings={**REPLICATED, **AVERAGED, "num_steps": 6}, run=RESUME),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    worker.write_start(path / "start")
    _train(path, 1, ON_ONE)
    return path


@pytest.fixture(scope="module")
def of_two(folder: Path) -> Path:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    _train(folder, 2, ON_TWO)
    _train(folder, 2, RESUMED_ON_TWO)
    _train(folder, 1, RESUMED_ON_ONE)
    return folder


def _train(folder: Path, num_ranks: int, cases: Sequence[Case]) -> None:
    """TF32 is off and cuBLAS repeats its sums: the bits of a resumed run are compared."""
    worker.write_cases(folder, cases)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_ranks}"),
        *(f"--master_port={launcher.free_port()}", str(SCRIPT), str(folder), "cuda"),
    ]
    environment = {k: v for k, v in launcher.clean_environment().items() if k != "CUDA_VISIBLE_DEVICES"}
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    environment |= {"NVIDIA_TF32_OVERRIDE": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}\n{ended.stderr[-6000:]}"
    for case in cases:
        assert worker.told(folder, case.name)["error"] == "", case.name


def _weights(folder: Path, name: str, *, step: int = 3) -> dict[str, Tensor]:
    return worker.weights_in(worker.checkpoint_of(folder, name, step=step))


def _difference(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest mean over one tensor; single weights differ, as Adam makes whole steps of rounding."""
    return max(float((others[name] - value).abs().mean()) for name, value in some.items())


def _assert_same_training(folder: Path, one: str, other: str) -> None:
    """The learning rate is 1e-3, so a wrong step moves a tensor a hundred times more than is allowed."""
    ours, theirs = worker.told(folder, one), worker.told(folder, other)
    difference = _difference(_weights(folder, one), _weights(folder, other))
    print(f"{one} and {other}: {ours['losses']} {theirs['losses']} {ours['norms']} {theirs['norms']}")
    print(f"{one} and {other}: mean difference of the weights {difference:.2e}")
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-5)
    assert theirs["norms"] == pytest.approx(ours["norms"], rel=1e-4)
    assert difference < 1e-5


def _assert_same_bfloat16_training(folder: Path, one: str, other: str) -> None:
    ours, theirs = worker.told(folder, one), worker.told(folder, other)
    masters = [
        {parameter: piece["master"] for parameter, piece in _state(folder, name, step=3).items()}
        for name in (one, other)
    ]
    difference = _difference(*masters)
    print(f"{one} and {other}: {ours['losses']} {theirs['losses']} {ours['norms']} {theirs['norms']}")
    print(f"{one} and {other}: mean difference of the masters {difference:.2e}")
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-3)
    assert theirs["norms"] == pytest.approx(ours["norms"], rel=1e-2)
    assert difference < 2e-4


def test_the_distributed_update_is_the_replicated_one_on_one_gpu(folder: Path) -> None:
    before, after = worker.weights_in(folder / "start"), _weights(folder, "distributed")
    for name, weight in before.items():
        assert (after[name] - weight).abs().max() > 1e-3, f"{name} has not learnt"
    _assert_same_training(folder, "replicated", "distributed")


def test_both_report_the_norm_of_gradients_that_are_not_clipped(folder: Path) -> None:
    assert min(worker.told(folder, "not_clipped")["norms"]) > 0
    _assert_same_training(folder, "not_clipped", "not_clipped_distributed")


def test_both_updates_train_a_bfloat16_network_alike(folder: Path) -> None:
    _assert_same_bfloat16_training(folder, "bf16", "bf16_distributed")
    masters = [piece["master"] for piece in _state(folder, "bf16_distributed", step=3).values()]
    finer = [float((master != master.bfloat16()).float().mean()) for master in masters]
    assert max(finer) > 0.9, "the masters are no finer than the weights"


def test_an_average_in_host_memory_is_the_one_on_the_gpu(folder: Path) -> None:
    here, there = _weights(folder, "averaged"), _weights(folder, "host")
    for name, weight in here.items():
        torch.testing.assert_close(there[name], weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", SAME_ON_TWO, ids=lambda case: case.name)
def test_two_gpus_train_as_one(of_two: Path, case: Case) -> None:
    _assert_same_training(of_two, "replicated", case.name)
    told = [worker.told(of_two, case.name, rank) for rank in range(2)]
    assert told[0]["losses"] == told[1]["losses"]
    assert told[0]["norms"] == pytest.approx(told[1]["norms"], rel=1e-6)


def test_two_gpus_train_a_bfloat16_network_as_one(of_two: Path) -> None:
    _assert_same_bfloat16_training(of_two, "bf16", "bf16_dp2")


def test_two_gpus_share_masters_moments_and_average(of_two: Path) -> None:
    path = worker.checkpoint_of(of_two, "six", step=6) / "training_state"
    parts = [torch.load(path / f"tensor000_part{part:05d}.pt", map_location="cpu") for part in range(2)]
    sizes = [sum(piece["master"].numel() for piece in part.values()) for part in parts]
    total = sum(weight.numel() for weight in _weights(of_two, "six", step=6).values())
    assert sum(sizes) == total
    assert max(sizes) < 0.6 * total
    for part in parts:
        for piece in part.values():
            assert {kind: piece[kind].numel() for kind in MOMENTS} == dict.fromkeys(
                MOMENTS, piece["stop"] - piece["start"]
            )
    # A float32 network's masters are views of all its weights, of which a file must hold the part alone.
    for part in parts:
        assert all(
            piece["master"].untyped_storage().nbytes() == 4 * piece["master"].numel()
            for piece in part.values()
        )


@pytest.mark.parametrize("dtype", ["", "bf16_"])
def test_two_gpus_go_on_bit_for_bit_in_a_new_process(of_two: Path, dtype: str) -> None:
    six, resumed = worker.told(of_two, f"{dtype}six"), worker.told(of_two, f"{dtype}three_and_three")
    assert resumed["steps"] == [4, 5, 6]
    assert worker.told(of_two, f"{dtype}three")["losses"] == six["losses"][:3]
    assert resumed["losses"] == six["losses"][3:]
    ours, theirs = (_state(of_two, f"{dtype}{name}", step=6) for name in ("six", "three"))
    for name, piece in ours.items():
        for kind in MOMENTS:
            assert torch.equal(piece[kind], theirs[name][kind]), f"{kind} of {name}"


def test_one_gpu_goes_on_where_two_stopped(of_two: Path) -> None:
    six, resumed = worker.told(of_two, "six_on_one"), worker.told(of_two, "two_then_one")
    assert resumed["steps"] == [4, 5, 6]
    assert resumed["losses"] == pytest.approx(six["losses"][3:], rel=1e-5)
    one, two = (_weights(of_two, name, step=6) for name in ("six_on_one", "to_one"))
    assert _difference(one, two) < 1e-5


def _state(folder: Path, name: str, *, step: int) -> dict[str, dict[str, Tensor]]:
    """The training state, the parts of all ranks joined."""
    path = worker.checkpoint_of(folder, name, step=step) / "training_state"
    joined: dict[str, dict[str, list[Tensor]]] = {}
    for file in sorted(path.glob("tensor000_part*.pt")):
        for parameter, piece in torch.load(file, map_location="cpu").items():
            kinds = joined.setdefault(parameter, {})
            for kind in MOMENTS:
                if kind in piece:
                    kinds.setdefault(kind, []).append(piece[kind])
    return {
        parameter: {kind: torch.cat(pieces) for kind, pieces in kinds.items()}
        for parameter, kinds in joined.items()
    }
