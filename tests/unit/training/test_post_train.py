"""A run on one rank: where it reads and writes, and what it goes on from."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.training.data import InMemory
from cosmos_nemo.training.loop import LossError, StepReport
from cosmos_nemo.training.nemo_checkpoint import checkpoints
from cosmos_nemo.training.post_train import Ended, Run, plan_of, post_train
from cosmos_nemo.training.settings import TrainingError, TrainingSettings
from tests.fakes import CPU
from tests.parallel.train_worker import CARD, data, weights_in, write_start

SETTINGS = TrainingSettings(num_steps=2, global_batch_size=1, learning_rate=1e-3)


def trained(
    folder: Path,
    *,
    settings: TrainingSettings = SETTINGS,
    start: Path | None = None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    wants_to_stop: Callable[[], bool] = lambda: False,
    dtype: torch.dtype = torch.float32,
    dataset: InMemory | None = None,
    **options: Any,
) -> Ended:
    run = Run(card=CARD, settings=settings, start=start, log_dir=folder, **options)
    return post_train(
        run,
        dataset or data(),
        groups=start_alone(CPU),
        device=CPU,
        dtype=dtype,
        facts={},
        on_step=on_step,
        wants_to_stop=wants_to_stop,
    )


def run_folders(folder: Path) -> list[Path]:
    return sorted((folder / "default").iterdir())


def test_a_run_from_scratch_writes_log_picture_and_a_checkpoint(tmp_path: Path) -> None:
    steps: list[int] = []
    ended = trained(tmp_path, on_step=lambda report: steps.append(report.step))
    assert steps == [1, 2]
    (folder,) = run_folders(tmp_path)
    assert ended == Ended(2, True, folder / "checkpoints" / "epoch=0-step=2")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "loss.png", "losses.csv"]
    assert len((folder / "losses.csv").read_text().splitlines()) == 3


def test_a_run_begins_with_the_weights_of_its_checkpoint(tmp_path: Path) -> None:
    write_start(tmp_path / "start")
    settings = replace(SETTINGS, learning_rate=0.0, num_steps=1)
    ended = trained(tmp_path, settings=settings, start=tmp_path / "start")
    assert ended.checkpoint is not None
    found, expected = weights_in(ended.checkpoint), weights_in(tmp_path / "start")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_missing_checkpoint_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        trained(tmp_path, start=tmp_path / "absent")
    assert not list(tmp_path.rglob("losses.csv"))


def test_checkpoints_come_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    trained(tmp_path, settings=replace(SETTINGS, num_steps=5), save_every=2, keep_states=2)
    names = sorted(path.name.split("-")[1] for path in tmp_path.rglob("epoch=*"))
    assert names == ["step=2", "step=4", "step=5"]
    states = sorted(path.parent.name.split("-")[1] for path in tmp_path.rglob("training_state"))
    assert states == ["step=4", "step=5"]


def test_the_last_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    seen = []
    trained(
        tmp_path,
        settings=replace(SETTINGS, num_steps=4),
        save_every=2,
        on_step=lambda _: seen.append(len(list(tmp_path.rglob("epoch=*")))),
    )
    assert seen == [0, 0, 1, 1]
    assert len(list(tmp_path.rglob("epoch=*"))) == 2


def test_nothing_but_the_log_is_written_if_asked(tmp_path: Path) -> None:
    assert trained(tmp_path, saves=False, save_every=1).checkpoint is None
    assert list(tmp_path.rglob("epoch=*")) == []


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        trained(tmp_path, settings=replace(SETTINGS, num_steps=1), saves=False)
    assert len(run_folders(tmp_path)) == 2


def test_resume_without_a_state_begins(tmp_path: Path) -> None:
    assert trained(tmp_path, resume=True).step == 2


def test_resume_goes_on_in_the_same_folder_and_log(tmp_path: Path) -> None:
    whole = [
        line.split(",")[:4] for line in _log(tmp_path / "a", trained(tmp_path / "a", settings=_steps(4)))
    ]
    trained(tmp_path / "b")
    ended = trained(tmp_path / "b", settings=_steps(4), resume=True)
    assert (ended.step, ended.is_complete) == (4, True)
    assert [line.split(",")[:4] for line in _log(tmp_path / "b", ended)] == whole
    states = list((tmp_path / "b").rglob("training_state"))
    assert [path.parent.name for path in states] == ["epoch=0-step=4"]


def test_resume_of_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    first = trained(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.distcp")}
    steps: list[int] = []
    again = trained(tmp_path, resume=True, on_step=lambda report: steps.append(report.step))
    assert again == first and steps == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.distcp")} == before
    assert len(_log(tmp_path, again)) == 3


def test_resume_takes_the_newest_run_and_its_newest_state(tmp_path: Path) -> None:
    old, new = (tmp_path / "default" / name for name in ("2024-01-01_00-00-00", "2025-01-01_00-00-00"))
    for folder, steps in ((new, 2), (old, 3)):
        trained(tmp_path / "x", settings=_steps(steps), keep_states=9, save_every=1)
        folder.parent.mkdir(exist_ok=True)
        run_folders(tmp_path / "x")[0].rename(folder)
    ended = trained(tmp_path, settings=_steps(4), resume=True)
    assert ended.checkpoint == new / "checkpoints" / "epoch=0-step=4"
    assert [line.split(",")[0] for line in (new / "losses.csv").read_text().splitlines()[1:]] == list("1234")
    assert len((old / "losses.csv").read_text().splitlines()) == 4


def test_resume_can_name_an_older_state(tmp_path: Path) -> None:
    first = trained(tmp_path, settings=_steps(3), save_every=1, keep_states=9)
    assert first.checkpoint is not None
    steps: list[int] = []
    trained(
        tmp_path,
        settings=_steps(3),
        resume=first.checkpoint.with_name("epoch=0-step=1"),
        on_step=lambda report: steps.append(report.step),
    )
    assert steps == [2, 3]


def test_a_named_checkpoint_without_a_state_is_refused_with_the_way_out(tmp_path: Path) -> None:
    first = trained(tmp_path, keep_states=0)
    assert first.checkpoint is not None
    with pytest.raises(TrainingError, match=r"holds no training_state: .*--nemo_checkpoint"):
        trained(tmp_path, resume=first.checkpoint)


def test_what_changed_since_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path)
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, settings=replace(_steps(3), text_dropout=0.5), resume=True)
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "text_dropout was 0.2 and is now 0.5" in record.getMessage()


def test_a_stopped_run_is_saved_and_told_from_a_complete_one(tmp_path: Path) -> None:
    ended = trained(tmp_path, settings=_steps(5), wants_to_stop=lambda: True)
    assert (ended.step, ended.is_complete) == (1, False)
    assert ended.checkpoint is not None and (ended.checkpoint / "training_state").is_dir()
    assert trained(tmp_path, settings=_steps(5), resume=True).is_complete


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    clips = data()
    run = Run(card=CARD, settings=_steps(4), start=None, log_dir=tmp_path, save_every=1)

    def spoil(report: StepReport) -> None:
        if report.step == 2:
            clips.latents_NCTHW.fill_(float("nan"))

    with pytest.raises(LossError, match="step 3"):
        post_train(
            run, clips, groups=start_alone(CPU), device=CPU, dtype=torch.float32, facts={}, on_step=spoil
        )
    newest = next(path.parent for path in tmp_path.rglob("training_state"))
    assert newest.name == "epoch=0-step=2"
    assert all(weight.isfinite().all() for weight in weights_in(newest).values())


def test_a_bfloat16_network_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e-5, num_steps=4)
    whole = trained(tmp_path / "a", settings=settings, dtype=torch.bfloat16)
    trained(tmp_path / "b", settings=replace(settings, num_steps=2), dtype=torch.bfloat16)
    parts = trained(tmp_path / "b", settings=settings, dtype=torch.bfloat16, resume=True)
    states = [
        torch.load(ended.checkpoint / "training_state" / "tensor000_part00000.pt")  # type: ignore[operator]
        for ended in (whole, parts)
    ]
    for name, piece in states[0].items():
        for kind in ("master", "exp_avg", "exp_avg_sq", "average"):
            assert torch.equal(piece[kind], states[1][name][kind]), f"{name} {kind}"


def test_the_plan_gives_what_is_left_to_replicas() -> None:
    plan = plan_of(TrainingSettings(tensor_parallel=2, context_parallel=2), num_ranks=8)
    assert (plan.replicas, plan.cp, plan.tp, plan.cfg, plan.num_ranks) == (2, 2, 2, 1, 8)


def _steps(number: int) -> TrainingSettings:
    return replace(SETTINGS, num_steps=number)


def _log(folder: Path, ended: Ended) -> list[str]:
    assert ended.checkpoint is not None
    return (ended.checkpoint.parents[1] / "losses.csv").read_text().splitlines()


def test_a_newest_state_of_other_data_is_not_taken_over_unasked(tmp_path: Path) -> None:
    first = trained(tmp_path)
    assert first.checkpoint is not None
    fewer = data(num_samples=4)
    with pytest.raises(TrainingError, match="is of a run on other data: pass another --log_dir"):
        trained(tmp_path, settings=_steps(3), dataset=fewer, resume=True)
    assert trained(tmp_path, settings=_steps(3), dataset=fewer, resume=first.checkpoint).step == 3


def test_an_older_state_and_one_from_elsewhere_go_on_in_a_new_folder(tmp_path: Path) -> None:
    trained(tmp_path / "a", settings=_steps(2), save_every=1, keep_states=2)
    older = checkpoints(run_folders(tmp_path / "a")[0] / "checkpoints")[0]
    trained(tmp_path / "a", settings=_steps(2), resume=older)
    assert len(run_folders(tmp_path / "a")) == 2
    newest = checkpoints(run_folders(tmp_path / "a")[0] / "checkpoints")[-1]
    trained(tmp_path / "b", settings=_steps(3), resume=newest)
    assert len(run_folders(tmp_path / "b")) == 1
