"""What a run writes: `checkpoints/epoch=E-step=S/{context,weights,training_state}`, as NeMo lays it out.

`weights` is the network in NeMo's torch_dist format, the average if there is one: what inference takes with
--nemo_checkpoint. `training_state` is what --resume takes. `context` says how the run was made, and is what
NeMo's load_context reads.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_nemo.catalog import CARDS, overrides_of
from cosmos_nemo.checkpoint.load import split_axis
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer import write_torch_dist
from cosmos_nemo.checkpoint.writer.nemo_context import CONTEXT, NeMoContext
from cosmos_nemo.parallel.rank_zero import everywhere, only_rank_zero
from cosmos_nemo.training.loop import Training
from cosmos_nemo.training.objective import noise_levels
from cosmos_nemo.training.state import write_description, write_part

STATE = "training_state"
_NAME = re.compile(r"epoch=(\d+)-step=(\d+)")


def save(training: Training, folder: Path, *, keep_states: int, context: Mapping[str, Any]) -> Path:
    """Writes the checkpoint of the current step into `folder`, whole or not at all; its path.

    Every rank calls it. Of all checkpoints there, the newest `keep_states` keep their training state, which
    is several times the size of the weights. OSError if the disk is full.
    """
    epoch = training.step * training.settings.global_batch_size // len(training.dataset)
    target = folder / f"epoch={epoch}-step={training.step}"
    partial = folder / f".{target.name}.partial"
    world = training.groups.world
    only_rank_zero(lambda: _start_anew(partial), world)
    try:
        if keep_states > 0:
            everywhere(lambda: write_part(training, partial / STATE), world)
        weights = _whole_weights(training)
        only_rank_zero(
            lambda: _finish(training, weights, partial, target, keep_states=keep_states, context=context),
            world,
        )
    except BaseException:
        if training.groups.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest last."""
    found = [(int(match[2]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _start_anew(partial: Path) -> None:
    for left in partial.parent.glob(".*.partial"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    (partial / STATE).mkdir(parents=True)


def _finish(
    training: Training,
    weights: Mapping[str, Tensor],
    partial: Path,
    target: Path,
    *,
    keep_states: int,
    context: Mapping[str, Any],
) -> None:
    card = training.card
    tensors = {name: LazyTensor.of(weight) for name, weight in weights.items()}
    overrides = overrides_of(card, CARDS[card.name])
    write_torch_dist(
        partial / "model",
        tensors,
        shape=card.network,
        card_overrides=overrides,
        context=NeMoContext(model=card.name, overrides=overrides),
    )
    for path in (partial / "model").iterdir():
        path.rename(partial / path.name)
    (partial / "model").rmdir()
    about = {
        "model": card.name,
        "step": training.step,
        "settings": asdict(training.settings),
        "noise_levels": asdict(noise_levels(training.settings, training.objective)),
        **context,
    }
    (partial / CONTEXT / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if keep_states > 0:
        write_description(training, partial / STATE)
    else:
        (partial / STATE).rmdir()
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    with_state = [path for path in checkpoints(target.parent) if (path / STATE).is_dir()]
    for path in with_state[: max(len(with_state) - keep_states, 0)]:
        shutil.rmtree(path / STATE)


@torch.no_grad()
def _whole_weights(training: Training) -> dict[str, Tensor]:
    """Every parameter whole, on the CPU of rank 0, in the network's dtype; empty on the other ranks."""
    tp = training.groups.collection.tp
    found = {}
    for name, shape in parameter_shapes(training.card.network).items():
        local = _whole_of_replicas(training, name)
        axis = split_axis(name)
        if axis is not None and tp.size() > 1:
            parts = [torch.empty_like(local) for _ in range(tp.size())]
            dist.all_gather(parts, local, group=tp)
            local = torch.cat(parts, dim=axis)
        assert tuple(local.shape) == shape, f"{name}: {tuple(local.shape)}, not {shape}"
        if training.groups.rank == 0:
            found[name] = local.cpu()
    return found


def _whole_of_replicas(training: Training, name: str) -> Tensor:
    """The average, or the master weights, of one parameter of this tensor parallel rank, in its dtype."""
    parameter = training.network.get_parameter(name)
    flat = torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    for shard in training.update.shards:
        if shard.name == name:
            value = shard.master if training.average is None else training.average.values[name]
            flat[shard.start : shard.stop] = value.to(flat.device, flat.dtype)
    if training.update.is_sharded:
        dist.all_reduce(flat, group=training.groups.collection.dp_cp)
    return flat.view(parameter.shape).contiguous()
