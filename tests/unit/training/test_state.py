"""Writing and reading a state on one rank. Other numbers of ranks, and kills: tests/parallel."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.training.loop import Training
from cosmos_nemo.training.settings import TrainingError
from cosmos_nemo.training.state import restore, write_description, write_part
from cosmos_nemo.training.update.base import Shard, Update
from tests.fakes import FakeGroup
from tests.parallel.train_worker import CARD, alone

PART = "tensor000_part00000.pt"


def training(*, seed: int = 0, shape: DiTShape = CARD.network, samples: int = 6, **settings: Any) -> Training:
    """`seed`: of the weights."""
    return alone(shape, weights_seed=seed, num_samples=samples, **{"average": "sharded", **settings})


def written(run: Training, folder: Path, *, steps: int = 2) -> Path:
    for report in run.steps():
        if report.step == steps:
            break
    folder.mkdir(exist_ok=True)
    write_part(run, folder)
    write_description(run, folder)
    return folder


def values(run: Training) -> dict[str, torch.Tensor]:
    found = {}
    for shard in run.update.shards:
        kinds = {"weight": shard.weights, "master": shard.master, **run.update.moments(shard)}
        if run.average is not None:
            kinds["average"] = run.average.values[shard.name]
        found |= {f"{shard.name} {kind}": value.detach().clone() for kind, value in kinds.items()}
    return found


def test_everything_comes_back_and_the_next_losses_are_the_same(tmp_path: Path) -> None:
    first = training()
    folder = written(first, tmp_path)
    second = training(seed=1)
    assert restore(second, folder) == []
    second.update.show_masters()
    assert second.step == 2
    assert second.average is not None and second.average.num_updates == 2
    expected = values(first)
    assert all(torch.equal(value, expected[name]) for name, value in values(second).items())
    one, other = ([(r.step, r.loss, r.gradient_norm) for r in run.steps()] for run in (first, second))
    assert one == other and [step for step, *_ in one] == [3, 4]
    assert all(torch.equal(value, values(first)[name]) for name, value in values(second).items())


def test_settings_that_decide_the_result_and_differ_are_told(tmp_path: Path) -> None:
    folder = written(training(), tmp_path)
    other = training(learning_rate=2e-3, text_dropout=0.1, num_steps=9, micro_batch_size=2, recompute="off")
    assert restore(other, folder) == [
        "learning_rate was 0.001 and is now 0.002",
        "text_dropout was 0.2 and is now 0.1",
    ]


def test_a_changed_batch_size_and_number_of_samples_are_told(tmp_path: Path) -> None:
    folder = written(training(), tmp_path)
    changes = restore(training(global_batch_size=4, samples=5), folder)
    assert "global_batch_size was 2 and is now 4" in changes
    assert "the data had 6 samples and now has 5" in changes


def test_an_average_that_was_off_begins_at_the_masters(tmp_path: Path) -> None:
    folder = written(training(average="off"), tmp_path)
    run = training()
    assert restore(run, folder) == ["average was off and is now sharded"]
    assert run.average is not None and run.average.num_updates == 0
    for shard in run.update.shards:
        assert torch.equal(run.average.values[shard.name], shard.master)


def test_an_average_may_move_to_the_host(tmp_path: Path) -> None:
    first = training()
    folder = written(first, tmp_path)
    run = training(average="host")
    restore(run, folder)
    assert run.average is not None and first.average is not None
    for name, value in run.average.values.items():
        assert torch.equal(value, first.average.values[name])


@pytest.mark.parametrize("kept", [0, 1000, -100])
def test_a_truncated_part_is_named(tmp_path: Path, kept: int) -> None:
    folder = written(training(), tmp_path)
    part = folder / PART
    part.write_bytes(part.read_bytes()[:kept])
    with pytest.raises(TrainingError, match=f"{PART} is missing or damaged .*--resume PATH"):
        restore(training(), folder)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = written(training(), tmp_path)
    (folder / PART).unlink()
    with pytest.raises(TrainingError, match=f"{PART} is missing or damaged"):
        restore(training(), folder)


@pytest.mark.parametrize("text", [None, "", '{"step": 2', "[]", "{}"])
def test_a_damaged_description_is_named(tmp_path: Path, text: str | None) -> None:
    folder = written(training(), tmp_path)
    path = folder / "state.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(TrainingError, match=r"state\.json is missing or damaged"):
        restore(training(), folder)


def test_another_number_of_tensor_parallel_ranks_is_refused(tmp_path: Path) -> None:
    folder = written(training(), tmp_path)
    text = json.loads((folder / "state.json").read_text()) | {"tensor_parallel": 4}
    (folder / "state.json").write_text(json.dumps(text))
    with pytest.raises(TrainingError, match="--tensor_parallel 4, not 1: continue with the same"):
        restore(training(), folder)


def test_a_state_of_a_network_with_more_layers_is_refused(tmp_path: Path) -> None:
    folder = written(training(), tmp_path)
    more = replace(CARD.network, num_layers=3)
    with pytest.raises(TrainingError, match=r"holds 0 of .* decoder\.layers\.2.* another model"):
        restore(training(shape=more), folder)


@pytest.mark.parametrize(("wrote", "reads"), [(128, 256), (256, 128)])
def test_a_state_of_a_network_of_other_widths_is_refused(tmp_path: Path, wrote: int, reads: int) -> None:
    shapes = [replace(CARD.network, ffn_hidden_size=width) for width in (wrote, reads)]
    folder = written(training(shape=shapes[0]), tmp_path)
    with pytest.raises(TrainingError, match="another model"):
        restore(training(shape=shapes[1]), folder)


def test_a_state_of_a_network_with_fewer_layers_is_refused(tmp_path: Path) -> None:
    """Else layers would silently be dropped."""
    folder = written(training(shape=replace(CARD.network, num_layers=3)), tmp_path)
    with pytest.raises(TrainingError, match="another model"):
        restore(training(), folder)


class _Half(Update):
    """The shards of one of two ranks that split every parameter in the middle; no optimizer behind them."""

    is_sharded = True

    def __init__(self, run: Training, rank: int) -> None:
        self.shards, self.state = [], {}
        for name, parameter in run.network.named_parameters():
            middle = parameter.numel() // 2
            start, stop = (0, middle) if rank == 0 else (middle, parameter.numel())
            master = parameter.detach().flatten()[start:stop].clone()
            self.shards.append(Shard(name, parameter, start, stop, master))
            self.state[name] = {kind: torch.full_like(master, 7.0) for kind in ("exp_avg", "exp_avg_sq")}

    def step(self, learning_rate: float) -> float:
        raise NotImplementedError

    def publish(self) -> None:
        """Nobody else is there."""

    def moments(self, shard: Shard) -> dict[str, torch.Tensor]:
        return self.state[shard.name]

    def set_step(self, step: int) -> None:
        self.at = step


def test_parts_of_two_ranks_make_one_whole_and_a_whole_falls_into_parts(tmp_path: Path) -> None:
    first = training(average="off")
    whole = {name: parameter.detach().clone() for name, parameter in first.network.named_parameters()}
    halves = tmp_path / "halves"
    halves.mkdir()
    for rank in (1, 0):
        first.update = _Half(first, rank)
        here = SimpleNamespace(tp=FakeGroup(1, 0), dp_cp=FakeGroup(2, rank))
        first.groups = SimpleNamespace(collection=here)  # type: ignore[assignment]
        write_part(first, halves)
    write_description(first, halves)
    assert sorted(path.name for path in halves.iterdir()) == [
        "state.json",
        PART,
        "tensor000_part00001.pt",
    ]
    second = training(seed=1, average="off")
    restore(second, halves)
    for shard in second.update.shards:
        assert torch.equal(shard.master, whole[shard.name].flatten())
        assert all((moment == 7).all() for moment in second.update.moments(shard).values())

    folder = written(second, tmp_path / "one", steps=1)
    third = training(seed=2, average="off")
    third.update = _Half(third, 1)
    restore(third, folder)
    for shard, other in zip(third.update.shards, second.update.shards, strict=True):
        assert torch.equal(shard.master, other.master[shard.start :])


def test_nothing_is_logged_as_an_error_on_the_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = written(training(), tmp_path)
    with caplog.at_level(logging.WARNING):
        restore(training(seed=1), folder)
    assert caplog.records == []
