"""The checkpoint one rank writes. Of several ranks: tests/parallel; as inference reads it: tests/doors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import CARDS, with_overrides
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.training import nemo_checkpoint
from cosmos_nemo.training.loop import Training
from cosmos_nemo.training.nemo_checkpoint import checkpoints, save
from tests.parallel.train_worker import CARD, alone, weights_in


def after_steps(steps: int, **options: Any) -> Training:
    run = alone(num_steps=steps, **options)
    list(run.steps())
    return run


def saved(run: Training, folder: Path, *, keep_states: int = 1) -> Path:
    return save(run, folder, keep_states=keep_states, context={"data": "somewhere"})


def masters(run: Training) -> dict[str, Tensor]:
    return {s.name: s.master.view(s.parameter.shape) for s in run.update.shards}


def test_the_folders_are_named_as_nemo_names_them(tmp_path: Path) -> None:
    """2 samples a step of 6: the third step ends the first epoch."""
    run = alone(num_steps=4)
    paths = [saved(run, tmp_path / "checkpoints") for _ in run.steps()]
    assert [path.name for path in paths] == [
        "epoch=0-step=1",
        "epoch=0-step=2",
        "epoch=1-step=3",
        "epoch=1-step=4",
    ]
    assert {path.name for path in paths[-1].iterdir()} == {
        "card.json",
        "context",
        "training_state",
        "weights",
    }
    files = {path.name for path in (paths[-1] / "weights").iterdir()}
    assert {".metadata", "metadata.json", "common.pt"} <= files
    assert any(name.endswith(".distcp") for name in files)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(p.name for p in paths)
    assert checkpoints(tmp_path / "checkpoints") == paths


def test_checkpoints_are_sorted_by_step_and_other_folders_left_out(tmp_path: Path) -> None:
    for name in ("epoch=0-step=10", "epoch=0-step=9", ".epoch=1-step=99.partial", "epoch=1", "best"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch=0-step=9", "epoch=0-step=10"]
    assert checkpoints(tmp_path / "absent") == []


def test_without_an_average_the_weights_are_the_masters(tmp_path: Path) -> None:
    run = after_steps(2)
    found = weights_in(saved(run, tmp_path))
    expected = masters(run)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("average", ["sharded", "host"])
def test_with_an_average_the_weights_are_the_average(tmp_path: Path, average: str) -> None:
    run = after_steps(3, average=average, average_decay=0.5)
    found = weights_in(saved(run, tmp_path))
    assert run.average is not None
    for name, master in masters(run).items():
        assert torch.equal(found[name].flatten(), run.average.values[name])
        assert not torch.equal(found[name], master)


def test_a_bfloat16_network_is_written_in_bfloat16(tmp_path: Path) -> None:
    run = after_steps(1, dtype=torch.bfloat16)
    for name, weight in weights_in(saved(run, tmp_path)).items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, masters(run)[name].bfloat16())


@pytest.mark.parametrize("named", ["", "weights"])
def test_the_reader_opens_it_by_either_name_and_with_the_size_of_its_card_file(
    tmp_path: Path, named: str
) -> None:
    path = saved(after_steps(1), tmp_path) / named
    checkpoint = open_checkpoint(path)
    card = with_overrides(CARDS[CARD.name], read_card_file(path))
    assert card == CARD
    assert network_rules(card.network, checkpoint).keys() == masters(after_steps(0)).keys()


def test_the_context_says_how_it_was_made(tmp_path: Path) -> None:
    path = saved(after_steps(2, learning_rate=3e-4), tmp_path)
    about = json.loads((path / "context" / "training.json").read_text())
    assert (about["model"], about["step"], about["data"]) == (CARD.name, 2, "somewhere")
    assert about["settings"]["learning_rate"] == 3e-4


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, [4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_keep_their_training_state_and_all_keep_their_weights(
    tmp_path: Path, keep: int, left: list[int]
) -> None:
    run = alone(num_steps=4)
    paths = [saved(run, tmp_path, keep_states=keep) for _ in run.steps()]
    assert [step for step, path in enumerate(paths, 1) if (path / "training_state").is_dir()] == left
    assert all((path / "weights").is_dir() for path in paths)


def test_a_failed_write_leaves_nothing_under_the_final_name_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = after_steps(1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(nemo_checkpoint, "write_torch_dist", full)
        with pytest.raises(OSError, match="No space left"):
            saved(run, tmp_path)
    assert checkpoints(tmp_path) == []
    saved(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0-step=1"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_frees_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """It may be full of what was being written; and whoever interrupts is told that nothing is left."""
    run = after_steps(1)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(nemo_checkpoint, "write_torch_dist", fail)
    with pytest.raises(type(error)):
        saved(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_cleared_by_the_next_checkpoint(tmp_path: Path) -> None:
    """A state of the 7B model is 100 GB, which nobody would look for under a hidden name."""
    (tmp_path / ".epoch=0-step=1.partial" / "training_state").mkdir(parents=True)
    run = after_steps(2)
    saved(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0-step=2"]


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    saved(after_steps(1), tmp_path)
    run = after_steps(1, learning_rate=5e-3)
    found = weights_in(saved(run, tmp_path))
    assert all(torch.equal(found[name], master) for name, master in masters(run).items())
