"""A network's checkpoint from any layout into another, tensor by tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cosmos_nemo.catalog import Family
from cosmos_nemo.checkpoint.aux_vars import copy_aux_vars
from cosmos_nemo.checkpoint.identity import Identity, identify
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.reader.base import Index
from cosmos_nemo.checkpoint.rules import Rule
from cosmos_nemo.checkpoint.sizes import describe
from cosmos_nemo.checkpoint.writer import write_diffusers, write_model_pt, write_safetensors, write_torch_dist
from cosmos_nemo.checkpoint.writer.new_path import refuse_existing

WRITERS: dict[str, Callable[..., None]] = {
    "nemo": write_torch_dist,
    "predict1": write_model_pt,
    "predict2": write_model_pt,
    "safetensors": write_safetensors,
    "diffusers": write_diffusers,
}
"""What `to` may be: NeMo's torch_dist, a family's model.pt, safetensors in its names, a diffusers folder."""
_FAMILIES_OF = {
    "predict1": (Family.COSMOS1, Family.TOKEN_DECODER),
    "predict2": (Family.PREDICT2,),
    "diffusers": (Family.COSMOS1, Family.PREDICT2),
}


def convert(
    source: Path,
    target: Path,
    *,
    to: str,
    model: str | None = None,
    dtype: torch.dtype | None = None,
    averaged: bool = False,
    on_tensor: Callable[[int, int], None] | None = None,
) -> Identity:
    """Writes the network at `source` into the new folder `target`, in the layout `to`; returns which it was.

    `model` names its card, found by its shapes if left out; `dtype` None keeps each tensor's own;
    `averaged` takes the moving average of the weights. One tensor is in memory at a time (all of them for a
    model.pt, which torch.save writes at once); `on_tensor(done, total)` follows each. Raises CheckpointError,
    CatalogError.
    """
    refuse_existing(target)
    checkpoint = open_network(source, averaged=averaged)
    identity = identify(checkpoint, model=model)
    family = identity.card.network.family
    if family not in _FAMILIES_OF.get(to, Family):
        other = next(name for name, families in _FAMILIES_OF.items() if family in families)
        raise CheckpointError(
            f"{source} is {describe(identity.card.network)}: convert it --to {other}, not {to}."
        )
    rules = network_rules(identity.card.network, checkpoint)
    tensors = lazy_network(checkpoint, rules=rules, dtype=dtype)
    if on_tensor is not None:
        tensors = _counted(tensors, on_tensor=on_tensor)
    WRITERS[to](target, tensors, shape=identity.card.network, card_overrides=identity.overrides)
    if family is Family.TOKEN_DECODER:
        copy_aux_vars(source, target)
    return identity


def lazy_network(
    checkpoint: Checkpoint, *, rules: Mapping[str, Rule], dtype: torch.dtype | None = None
) -> dict[str, LazyTensor]:
    """Our name -> the tensor as `rules` read it, in `dtype` (None: as stored)."""
    return {name: _lazy(checkpoint, rule, dtype=dtype) for name, rule in rules.items()}


def _lazy(checkpoint: Checkpoint, rule: Rule, *, dtype: torch.dtype | None) -> LazyTensor:
    wanted = dtype or checkpoint.dtype(rule.names[0])
    return LazyTensor(rule.shape, wanted, lambda index: rule.read(checkpoint, index).to(wanted))


@dataclass
class _Counter:
    on_tensor: Callable[[int, int], None]
    total: int
    done: int = 0

    def after(self, tensor: LazyTensor) -> LazyTensor:
        def load(index: Index) -> Tensor:
            value = tensor.load(index)
            self.done += 1
            self.on_tensor(self.done, self.total)
            return value

        return LazyTensor(tensor.shape, tensor.dtype, load)


def _counted(
    tensors: Mapping[str, LazyTensor], *, on_tensor: Callable[[int, int], None]
) -> dict[str, LazyTensor]:
    counter = _Counter(on_tensor, total=len(tensors))
    return {name: counter.after(tensor) for name, tensor in tensors.items()}
