"""One training run from its settings to its checkpoints. Every rank of the run calls the same."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.parallel.rank_zero import everywhere, rank_zero
from cosmos_nemo.plan import Plan
from cosmos_nemo.training.average import Average
from cosmos_nemo.training.data import Dataset
from cosmos_nemo.training.initial import initialize
from cosmos_nemo.training.loop import StepReport, Training
from cosmos_nemo.training.loss_log import LossLog
from cosmos_nemo.training.nemo_checkpoint import STATE, checkpoints, save
from cosmos_nemo.training.settings import TrainingError, TrainingSettings
from cosmos_nemo.training.state import read_data_identity, restore
from cosmos_nemo.training.update.choose import make_update
from cosmos_nemo.training.widened import starting_rules

logger = logging.getLogger(__name__)
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run reads and writes. `start` None: from scratch."""

    card: ModelCard
    settings: TrainingSettings
    start: Path | None
    log_dir: Path
    resume: bool | Path = False
    """True: the newest checkpoint in log_dir that has a training state, or a new run if there is none."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_states: int = 1
    """Checkpoints that can be continued from; 0: none is ever written."""
    saves: bool = True


@dataclass(frozen=True)
class Ended:
    """How a run ended: `checkpoint` is the newest one on disk, None if there is none."""

    step: int
    is_complete: bool
    checkpoint: Path | None


def plan_of(settings: TrainingSettings, *, num_ranks: int) -> Plan:
    return Plan(
        cp=settings.context_parallel, tp=settings.tensor_parallel, replicas=settings.data_parallel(num_ranks)
    )


def post_train(
    run: Run,
    dataset: Dataset,
    *,
    groups: Groups,
    device: torch.device,
    dtype: torch.dtype,
    facts: Mapping[str, Any],
    on_step: Callable[[StepReport], None] = lambda report: None,
    wants_to_stop: Callable[[], bool] = lambda: False,
) -> Ended:
    """Trains `run.settings.num_steps` steps, or fewer if a rank wants to stop, and saves.

    A run that was stopped or killed goes on from its last checkpoint with `resume`, with the losses that it
    would have had. `facts` go into each checkpoint's context.
    """
    state = rank_zero(lambda: state_to_resume(run), groups.world)
    training = _start(run, dataset, groups=groups, device=device, dtype=dtype, state=state)
    folder = rank_zero(lambda: _run_folder(run, state), groups.world)
    log = LossLog(folder, title=run.card.name, from_step=training.step) if groups.rank == 0 else None
    checkpoint, saved_step = state, training.step
    for report in training.steps(wants_to_stop=wants_to_stop):
        if log is not None:
            log.add(report)
        on_step(report)
        if run.saves and run.save_every and report.step % run.save_every == 0:
            checkpoint, saved_step = _save(training, run, folder, facts), report.step
            if log is not None:
                log.draw()
    if run.saves and saved_step != training.step:
        checkpoint = _save(training, run, folder, facts)
    if log is not None:
        log.draw()
    return Ended(training.step, training.step >= run.settings.num_steps, checkpoint)


def state_to_resume(run: Run) -> Path | None:
    """The checkpoint to continue from; TrainingError if the one that was named has no training state."""
    if run.resume is False:
        return None
    if run.resume is not True:
        if not (run.resume / STATE).is_dir():
            raise TrainingError(
                f"--resume {run.resume} holds no {STATE}: name a folder epoch=E-step=S that has one, or "
                "start anew from its weights with --nemo_checkpoint."
            )
        return run.resume
    found = [
        path
        for folder in sorted((run.log_dir / "default").glob("*"))
        for path in checkpoints(folder / _CHECKPOINTS)
        if (path / STATE).is_dir()
    ]
    return found[-1] if found else None


def _run_folder(run: Run, state: Path | None) -> Path:
    """The folder of the run that it continues, or a new one named by the time, as NeMo does.

    A new one too if the state is not the newest there, or not in log_dir: else the next --resume would take
    the other branch.
    """
    is_here = state is not None and state.resolve().is_relative_to(run.log_dir.resolve())
    if state is not None and is_here and checkpoints(state.parent)[-1:] == [state]:
        return state.parent.parent
    named = run.log_dir / "default" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = named, 1
    while folder.exists():
        folder, number = named.with_name(f"{named.name}-{number}"), number + 1
    folder.mkdir(parents=True)
    return folder


def _start(
    run: Run,
    dataset: Dataset,
    *,
    groups: Groups,
    device: torch.device,
    dtype: torch.dtype,
    state: Path | None,
) -> Training:
    """What can fail on one rank alone stands in `everywhere`, which must not hold a collective."""
    network = everywhere(
        lambda: _network(run, groups=groups, device=device, dtype=dtype, is_filled=state is None),
        groups.world,
    )
    update = make_update(network, settings=run.settings, groups=groups, device=device)
    average = None
    if run.settings.average != "off":
        average = Average(
            update.shards,
            decay=run.settings.average_decay,
            in_host_memory=run.settings.average == "host",
        )
    training = Training(
        card=run.card,
        settings=run.settings,
        network=network,
        update=update,
        average=average,
        dataset=dataset,
        groups=groups,
        device=device,
    )
    if state is not None:
        everywhere(lambda: _continue(training, run, state), groups.world)
        training.update.show_masters()
    return training


def _continue(training: Training, run: Run, state: Path) -> None:
    """Reads the state; TrainingError if it was found by itself and is of a run on other data."""
    if run.resume is True and read_data_identity(state / STATE) != training.dataset.identity:
        raise TrainingError(
            f"{state}, the newest state in --log_dir, is of a run on other data: pass another --log_dir "
            f"to begin a new run, or --resume {state} to go on with this data."
        )
    for change in restore(training, state / STATE):
        logger.warning("Continuing %s with other settings: %s", state, change)
    logger.info("Continuing from step %d of %s", training.step, state)


def _network(run: Run, *, groups: Groups, device: torch.device, dtype: torch.dtype, is_filled: bool) -> DiT:
    """The network with the weights that training begins with; from a state they are read later."""
    collection = groups.collection
    network = build_network(
        run.card.network, backend=torch_backend(), pg_collection=collection, device=device, dtype=dtype
    )
    tp_rank, tp_size = collection.tp.rank(), collection.tp.size()
    if is_filled and run.start is not None:
        checkpoint = open_network(run.start)
        load_into(
            network,
            checkpoint=checkpoint,
            rules=starting_rules(run.card.network, checkpoint),
            tensor_parallel_rank=tp_rank,
            tensor_parallel_size=tp_size,
        )
    elif is_filled:
        initialize(network, seed=run.settings.seed, tp_rank=tp_rank, tp_size=tp_size)
    return network.requires_grad_(True).train()


def _save(training: Training, run: Run, folder: Path, facts: Mapping[str, Any]) -> Path:
    path = save(training, folder / _CHECKPOINTS, keep_states=run.keep_states, context=facts)
    logger.info("wrote %s", path)
    return path
