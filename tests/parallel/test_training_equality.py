"""Training gives the same losses and weights on every number of ranks, and after every interruption."""

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.parallel import launcher
from tests.parallel import train_worker as worker
from tests.parallel.train_worker import Case

SCRIPT = Path(worker.__file__)
TP2, CP2, MICRO2 = {"tensor_parallel": 2}, {"context_parallel": 2}, {"micro_batch_size": 2}
ONE = Case(name="one")
SAME = (
    Case(name="dp2", num_ranks=2),
    Case(name="tp2", num_ranks=2, settings=TP2),
    Case(name="cp2", num_ranks=2, settings=CP2),
    Case(name="dp2_tp2", num_ranks=4, settings=TP2),
    Case(name="dp2_cp2", num_ranks=4, settings=CP2),
    Case(name="micro2", settings=MICRO2),
    Case(name="not_recomputed", settings={"recompute": "off"}),
)
AVERAGED = {"average": "sharded", "average_decay": 0.5, "warmup_steps": 3}
SIX, THREE = {**AVERAGED, "num_steps": 6}, {**AVERAGED, "num_steps": 3}
FIRST = (
    ONE,
    *SAME,
    Case(name="six", settings=SIX),
    Case(name="three", settings=THREE),
    Case(name="stopped", num_ranks=2, settings=SIX, stops_after=2),
    Case(name="scratch", start=False, settings={"num_steps": 1}),
    Case(name="scratch_tp2", num_ranks=2, start=False, settings={"num_steps": 1, **TP2}),
    Case(name="nan", num_ranks=2, bad_sample=True),
)
KILLED = Case(name="killed", settings=SIX, run={"save_every": 2}, dies_saving_step=4)
RESUME = {"resume": True}
SECOND = (
    Case(name="three_and_three", log="three", settings=SIX, run=RESUME),
    Case(name="killed_and_resumed", log="killed", settings=SIX, run={**RESUME, "save_every": 2}),
    Case(name="stopped_and_fewer", log="stopped", settings=SIX, run=RESUME),
    Case(name="tp_changed", num_ranks=2, log="dp2", settings={**TP2, "num_steps": 4}, run=RESUME),
    Case(name="more_replicas", num_ranks=2, log="one", settings={"num_steps": 4}, run=RESUME),
    Case(name="four", settings={"num_steps": 4}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    worker.write_start(path / "start")
    worker.write_cases(path, FIRST)
    launcher.run_ranks(4, SCRIPT, str(path), timeout=300)
    worker.write_cases(path, [KILLED])
    (killed,) = launcher.wait_for(launcher.start_ranks(1, SCRIPT, str(path)))
    assert killed.status == -signal.SIGKILL, killed.err
    assert len(list((path / "killed").rglob(".epoch=*-step=4.partial"))) == 1
    worker.write_cases(path, SECOND)
    launcher.run_ranks(2, SCRIPT, str(path), timeout=300)
    return path


def _weights(folder: Path, name: str, *, step: int = 3) -> dict[str, Tensor]:
    return worker.weights_in(worker.checkpoint_of(folder, name, step=step))


def _largest_difference(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    assert some.keys() == others.keys()
    return max(float((others[name] - weight).abs().max()) for name, weight in some.items())


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_losses_gradients_and_weights_are_those_of_one_rank(folder: Path, case: Case) -> None:
    one, many = worker.told(folder, "one"), worker.told(folder, case.name)
    assert many["losses"] == pytest.approx(one["losses"], rel=2e-6)
    assert many["norms"] == pytest.approx(one["norms"], rel=2e-6)
    # Adam divides by the size of the gradient, which magnifies the rounding of the smallest ones.
    assert _largest_difference(_weights(folder, "one"), _weights(folder, case.name)) < 1e-5


def test_every_kind_of_weight_learns_so_that_equality_means_something(folder: Path) -> None:
    before, after = worker.weights_in(folder / "start"), _weights(folder, "one")
    for name, weight in before.items():
        assert (after[name] - weight).abs().max() > 1e-3, name
    losses = worker.told(folder, "one")["losses"]
    assert losses[2] < losses[0]


@pytest.mark.parametrize("case", [case for case in SAME if case.num_ranks > 1], ids=lambda case: case.name)
def test_every_rank_reports_the_same_losses_and_gradients(folder: Path, case: Case) -> None:
    told = [worker.told(folder, case.name, rank) for rank in range(case.num_ranks)]
    assert all(one["losses"] == told[0]["losses"] and one["norms"] == told[0]["norms"] for one in told)


def test_a_checkpoint_of_two_tensor_parallel_ranks_has_the_layout_of_one(folder: Path) -> None:
    from cosmos_nemo.checkpoint.reader import open_checkpoint

    one, two = (open_checkpoint(worker.checkpoint_of(folder, name, step=3)) for name in ("one", "tp2"))
    layouts = [{name: tuple(c.shape(name)) for name in c.names()} for c in (one, two)]
    assert layouts[0] == layouts[1]


def test_from_scratch_two_tensor_parallel_ranks_begin_with_the_weights_of_one(folder: Path) -> None:
    one, two = (_weights(folder, name, step=1) for name in ("scratch", "scratch_tp2"))
    assert all(torch.equal(two[name], weight) for name, weight in one.items() if "final_layer" not in name)
    assert _largest_difference(one, two) < 1e-6


def test_a_new_process_goes_on_bit_for_bit(folder: Path) -> None:
    six, three = worker.told(folder, "six"), worker.told(folder, "three_and_three")
    assert three["steps"] == [4, 5, 6]
    assert worker.told(folder, "three")["losses"] + three["losses"] == six["losses"]
    assert three["norms"] == six["norms"][3:]
    assert three["learning_rates"] == six["learning_rates"][3:]
    _same_checkpoints(folder, "six", "three")


def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(folder: Path) -> None:
    six, resumed = worker.told(folder, "six"), worker.told(folder, "killed_and_resumed")
    assert resumed["steps"] == [3, 4, 5, 6]
    assert resumed["losses"] == six["losses"][2:]
    _same_checkpoints(folder, "six", "killed")
    assert list((folder / "killed").rglob(".*.partial")) == []


def test_a_run_that_one_rank_stopped_goes_on_with_fewer_ranks(folder: Path) -> None:
    stopped, six = worker.told(folder, "stopped"), worker.told(folder, "six")
    assert (stopped["steps"], stopped["is_complete"]) == ([1, 2], False)
    resumed = worker.told(folder, "stopped_and_fewer")
    assert resumed["steps"] == [3, 4, 5, 6]
    assert stopped["losses"] + resumed["losses"] == pytest.approx(six["losses"], rel=2e-6)
    assert _largest_difference(_weights(folder, "six", step=6), _weights(folder, "stopped", step=6)) < 1e-5


def test_a_run_goes_on_with_more_ranks(folder: Path) -> None:
    more, four = worker.told(folder, "more_replicas"), worker.told(folder, "four")
    assert more["losses"] == pytest.approx(four["losses"][3:], rel=2e-6)
    assert _largest_difference(_weights(folder, "four", step=4), _weights(folder, "one", step=4)) < 1e-5


def test_another_number_of_tensor_parallel_ranks_is_refused_on_every_rank(folder: Path) -> None:
    for rank in range(2):
        error = worker.told(folder, "tp_changed", rank)["error"]
        assert "--tensor_parallel 1, not 2" in error and "--nemo_checkpoint" in error


def test_a_latent_that_is_no_number_stops_every_rank_and_leaves_no_checkpoint(folder: Path) -> None:
    for rank in range(2):
        told = worker.told(folder, "nan", rank)
        assert told["error"].startswith("LossError: the loss of step 1 is nan")
        assert told["losses"] == []
    assert list((folder / "nan").rglob("epoch=*")) == []


def _same_checkpoints(folder: Path, one: str, other: str) -> None:
    """Masters, moments and average, and the weights, to the bit."""
    ours, theirs = (worker.checkpoint_of(folder, name, step=6) for name in (one, other))
    states = [torch.load(path / "training_state/tensor000_part00000.pt") for path in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for name, pieces in states[0].items():
        for kind in ("master", "exp_avg", "exp_avg_sq", "average"):
            assert torch.equal(pieces[kind], states[1][name][kind]), f"{kind} of {name}"
    weights = worker.weights_in(theirs)
    for name, weight in worker.weights_in(ours).items():
        assert torch.equal(weights[name], weight), name
        assert not torch.equal(states[0][name]["master"], weight.flatten()), f"{name}: the average is written"


@pytest.mark.parametrize("what", ["state", "weights"])
def test_a_rank_that_cannot_read_ends_the_others_too(folder: Path, what: str) -> None:
    """On GPUs making the optimizer and sharing weights are collectives: no rank may wait in them."""
    log, run = ("one", RESUME) if what == "state" else ("", {})
    case = Case(
        name=f"no_{what}", num_ranks=2, log=log, run=run, settings={"num_steps": 4}, fails_reading=what
    )
    worker.write_cases(folder, [case])
    launcher.run_ranks(2, SCRIPT, str(folder), timeout=90)
    for rank in range(2):
        assert f"the {what} are on another host" in worker.told(folder, case.name, rank)["error"]
