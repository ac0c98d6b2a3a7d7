"""The state of a run on disk: what an unbroken run would have in memory at this step.

One file for each tensor parallel rank and part of the replicas' share. A run may be continued by another
number of data or context parallel ranks, which then read each other's parts, but not of tensor parallel ones.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.training.loop import Training
from cosmos_nemo.training.settings import TrainingError
from cosmos_nemo.training.update.base import Shard

_STATE_FILE = "state.json"
_MAY_CHANGE = {
    "num_steps",
    "micro_batch_size",
    "context_parallel",
    "recompute",
    "optimizer",
    "gradient_dtype",
}


def write_part(training: Training, folder: Path) -> None:
    """Writes this rank's part, if no other rank has the same one. Every rank calls it."""
    groups = training.groups.collection
    if groups.dp_cp.rank() > 0 and not training.update.is_sharded:
        return
    path = folder / _part_name(groups.tp.rank(), groups.dp_cp.rank())
    torch.save({shard.name: _piece(training, shard) for shard in training.update.shards}, path)


def write_description(training: Training, folder: Path) -> None:
    """Writes what the parts have in common. Rank 0 calls it, after all parts are there."""
    groups = training.groups.collection
    average = training.average
    text = {
        "step": training.step,
        "tensor_parallel": groups.tp.size(),
        "num_parts": groups.dp_cp.size() if training.update.is_sharded else 1,
        "average_updates": None if average is None else average.num_updates,
        "num_samples": len(training.dataset),
        "data": training.dataset.identity,
        "settings": asdict(training.settings),
    }
    (folder / _STATE_FILE).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def read_data_identity(folder: Path) -> str:
    """Of the data set that the state's run was trained on."""
    return str(_description(folder).get("data"))


@torch.no_grad()
def restore(training: Training, folder: Path) -> list[str]:
    """Brings masters, moments, average and step to the state in `folder`; what differs now, as sentences.

    The network has its weights only after `update.show_masters()`, which all ranks call together.
    TrainingError if the state is damaged, or of another network or number of tensor parallel ranks.
    """
    found = _description(folder)
    tp = training.groups.collection.tp
    if found["tensor_parallel"] != tp.size():
        raise TrainingError(
            f"{folder} was written with --tensor_parallel {found['tensor_parallel']}, not {tp.size()}: "
            "continue with the same, or start anew from its weights with --nemo_checkpoint."
        )
    parts = [_read_part(folder / _part_name(tp.rank(), part)) for part in range(found["num_parts"])]
    _check_shapes(training, parts, folder=folder)
    for shard in training.update.shards:
        for name, target in _targets(training, shard).items():
            _fill(target, shard, parts, kind=name, folder=folder)
    if training.average is not None and found["average_updates"] is not None:
        training.average.num_updates = found["average_updates"]
    training.step = int(found["step"])
    training.update.set_step(training.step)
    return _changes(found, training)


def _part_name(tp_rank: int, part: int) -> str:
    return f"tensor{tp_rank:03d}_part{part:05d}.pt"


def _targets(training: Training, shard: Shard) -> dict[str, Tensor]:
    """What belongs to a shard, by the names it has in the file."""
    targets = {"master": shard.master, **training.update.moments(shard)}
    if training.average is not None:
        targets["average"] = training.average.values[shard.name]
    return targets


def _piece(training: Training, shard: Shard) -> dict[str, Any]:
    # Clones: a view would be saved with all that it is a view of.
    tensors = {name: target.detach().clone() for name, target in _targets(training, shard).items()}
    shape = list(shard.parameter.shape)
    return {"shape": shape, "start": shard.start, "stop": shard.stop, **tensors}


def _read_part(path: Path) -> dict[str, dict[str, Any]]:
    try:
        part: dict[str, dict[str, Any]] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{path} is missing or damaged ({reason}): continue from an older checkpoint with --resume PATH."
        ) from error
    return part


def _check_shapes(training: Training, parts: list[dict[str, dict[str, Any]]], *, folder: Path) -> None:
    ours = {name: list(parameter.shape) for name, parameter in training.network.named_parameters()}
    theirs = {name: piece["shape"] for part in parts for name, piece in part.items()}
    differing = sorted(name for name in theirs if theirs[name] != ours.get(name))
    if differing:
        name = differing[0]
        raise TrainingError(
            f"{folder} holds {name} of shape {theirs[name]}, the network {ours.get(name, 'no such weight')}: "
            "is it of another model?"
        )


def _fill(
    target: Tensor, shard: Shard, parts: list[dict[str, dict[str, Any]]], *, kind: str, folder: Path
) -> None:
    """Copies into `target` what the parts hold of [shard.start, shard.stop)."""
    filled = 0
    for piece in (part[shard.name] for part in parts if shard.name in part):
        source = piece.get(kind, piece["master"])  # an average that was off before starts at the masters
        start, stop = max(shard.start, piece["start"]), min(shard.stop, piece["stop"])
        if start < stop:
            target[start - shard.start : stop - shard.start] = source[
                start - piece["start"] : stop - piece["start"]
            ]
            filled += stop - start
    if filled != shard.stop - shard.start:
        raise TrainingError(
            f"{folder} holds {filled} of the {shard.stop - shard.start} values of {shard.name}: is it of "
            "another model?"
        )


def _description(folder: Path) -> dict[str, Any]:
    path = folder / _STATE_FILE
    try:
        text: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("step", "tensor_parallel", "num_parts", "average_updates", "num_samples", "settings"):
            text[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is missing or damaged ({error}): pass the folder of a checkpoint that holds a "
            "training_state, or start anew."
        ) from error
    return text


def _changes(found: Mapping[str, Any], training: Training) -> list[str]:
    now = json.loads(json.dumps(asdict(training.settings)))
    changes = [
        f"{name} was {old} and is now {now[name]}"
        for name, old in found["settings"].items()
        if name in now and name not in _MAY_CHANGE and now[name] != old
    ]
    if found["num_samples"] != len(training.dataset):
        changes.append(f"the data had {found['num_samples']} samples and now has {len(training.dataset)}")
    return changes
