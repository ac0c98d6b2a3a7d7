"""A network's checkpoint from any layout into another, tensor by tensor."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import Family
from cosmos_nemo.checkpoint.aux_vars import copy_aux_vars
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.identity import Identity, identify
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.reader.base import Index
from cosmos_nemo.checkpoint.rules import Rule
from cosmos_nemo.checkpoint.sizes import describe
from cosmos_nemo.checkpoint.token_identity import holds_token_transformer, identify_tokens
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.checkpoint.token_sizes import describe as describe_tokens
from cosmos_nemo.checkpoint.writer import write_diffusers, write_model_pt, write_safetensors, write_torch_dist
from cosmos_nemo.checkpoint.writer.nemo_context import NeMoContext
from cosmos_nemo.checkpoint.writer.new_path import refuse_existing
from cosmos_nemo.checkpoint.writer.token_transformer import (
    write_token_model_pt,
    write_token_safetensors,
    write_token_torch_dist,
)

WRITERS: dict[str, Callable[..., None]] = {
    "nemo": write_torch_dist,
    "predict1": write_model_pt,
    "predict2": write_model_pt,
    "safetensors": write_safetensors,
    "diffusers": write_diffusers,
}
"""What `to` may be: NeMo's torch_dist, a family's model.pt, safetensors in its names, a diffusers folder."""
TOKEN_WRITERS: dict[str, Callable[..., None]] = {
    "nemo": write_token_torch_dist,
    "predict1": write_token_model_pt,
    "safetensors": write_token_safetensors,
}
"""Those that there are for an autoregressive transformer."""
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
    overrides: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    averaged: bool = False,
    on_tensor: Callable[[int, int], None] | None = None,
) -> Identity:
    """Writes the network at `source` into the new folder `target`, in the layout `to`; returns which it was.

    It is a diffusion transformer or an autoregressive one. `model` names its card, found by its shapes if
    left out; `overrides` are what its card.json would say, the one beside `source` if left out; `dtype` None
    keeps each tensor's own; `averaged` takes the moving average of the weights. One tensor is in memory at a
    time (all of them for a model.pt, which torch.save writes at once); `on_tensor(done, total)` follows each.
    Raises CheckpointError, CatalogError.
    """
    refuse_existing(target)
    checkpoint = open_network(source, averaged=averaged)
    plan = _plan_tokens if holds_token_transformer(checkpoint) else _plan_diffusion
    stated = read_card_file(source) if overrides is None else overrides
    conversion = plan(checkpoint, to=to, model=model, overrides=stated)
    if dtype is None:
        _refuse_mixed(checkpoint, conversion.rules)
    tensors = lazy_network(checkpoint, rules=conversion.rules, dtype=dtype)
    if on_tensor is not None:
        tensors = _counted(tensors, on_tensor=on_tensor)
    identity = conversion.identity
    conversion.write(target, tensors, shape=conversion.shape, card_overrides=identity.overrides)
    if identity.is_decoder:
        copy_aux_vars(source, target)
    return identity


@dataclass(frozen=True, kw_only=True)
class _Conversion:
    """What is read, how, and who writes it. `shape` is a DiTShape or a TokenShape, as `write` takes it."""

    identity: Identity
    shape: Any
    rules: Mapping[str, Rule]
    write: Callable[..., None]


def _plan_diffusion(
    checkpoint: Checkpoint, *, to: str, model: str | None, overrides: Mapping[str, Any]
) -> _Conversion:
    identity = identify(checkpoint, model=model, overrides=overrides)
    shape = identity.card.network
    if shape.family not in _FAMILIES_OF.get(to, Family):
        other = next(name for name, families in _FAMILIES_OF.items() if shape.family in families)
        raise CheckpointError(f"{checkpoint.path} is {describe(shape)}: convert it --to {other}, not {to}.")
    rules = network_rules(shape, checkpoint)
    return _Conversion(identity=identity, shape=shape, rules=rules, write=_writer(WRITERS, to, identity))


def _plan_tokens(
    checkpoint: Checkpoint, *, to: str, model: str | None, overrides: Mapping[str, Any]
) -> _Conversion:
    identity = identify_tokens(checkpoint, model=model, overrides=overrides)
    assert identity.card.tokens is not None
    shape = identity.card.tokens.network
    if to not in TOKEN_WRITERS:
        raise CheckpointError(
            f"{checkpoint.path} is an autoregressive transformer, {describe_tokens(shape)}: convert it --to "
            f"{' or '.join(TOKEN_WRITERS)}, not {to}."
        )
    rules = token_rules(shape, checkpoint)
    write = _writer(TOKEN_WRITERS, to, identity)
    return _Conversion(identity=identity, shape=shape, rules=rules, write=write)


def _writer(writers: Mapping[str, Callable[..., None]], to: str, identity: Identity) -> Callable[..., None]:
    if to != "nemo":
        return writers[to]
    context = NeMoContext(
        model=identity.base.name, overrides=identity.overrides, diffusion_decoder=identity.is_decoder
    )
    return partial(writers[to], context=context)


def _refuse_mixed(checkpoint: Checkpoint, rules: Mapping[str, Rule]) -> None:
    """CheckpointError if what another layout has in one tensor is of several types: one would be changed."""
    dtypes: dict[str, dict[torch.dtype, str]] = defaultdict(dict)
    for name, rule in rules.items():
        kind = re.sub(r"layers\.\d+\.", "layers.", name)
        dtypes[kind] |= {checkpoint.dtype(stored): stored for stored in rule.names}
    mixed = next((found for found in dtypes.values() if len(found) > 1), None)
    if mixed is not None:
        kinds = " and ".join(
            f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, name in mixed.items()
        )
        raise CheckpointError(
            f"{checkpoint.path} holds {kinds}, which other layouts keep in one tensor: pass --dtype"
        )


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
        """Counts its first reading alone; a writer may look at a tensor before it writes it."""
        is_counted = False

        def load(index: Index) -> Tensor:
            nonlocal is_counted
            value = tensor.load(index)
            if not is_counted:
                is_counted = True
                self.done += 1
                self.on_tensor(self.done, self.total)
            return value

        return LazyTensor(tensor.shape, tensor.dtype, load)


def _counted(
    tensors: Mapping[str, LazyTensor], *, on_tensor: Callable[[int, int], None]
) -> dict[str, LazyTensor]:
    counter = _Counter(on_tensor, total=len(tensors))
    return {name: counter.after(tensor) for name, tensor in tensors.items()}
