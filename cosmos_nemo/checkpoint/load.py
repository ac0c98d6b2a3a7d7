"""Filling a network in place from a checkpoint, each tensor-parallel rank from its own part of the file."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.reader import Checkpoint
from cosmos_nemo.checkpoint.reader.base import Index
from cosmos_nemo.checkpoint.rules import Rule, Shape

logger = logging.getLogger(__name__)

_COLUMN, _ROW = 0, 1
# The axis along which Megatron's tensor parallelism splits a layer's linears; everything else is whole.
_SPLIT_AXIS = {
    "linear_qkv": _COLUMN,
    "linear_q": _COLUMN,
    "linear_kv": _COLUMN,
    "linear_fc1": _COLUMN,
    "linear_proj": _ROW,
    "linear_fc2": _ROW,
}
# Outside the layers, rows of the vocabulary.
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


@torch.no_grad()
def load_into(
    module: nn.Module,
    *,
    checkpoint: Checkpoint,
    rules: Mapping[str, Rule],
    tensor_parallel_rank: int = 0,
    tensor_parallel_size: int = 1,
) -> None:
    """Fills every parameter of `module` from `checkpoint`, on its device and in its dtype.

    Only this rank's part of each tensor is read. `rules` (see names.network_rules) must cover exactly the
    parameters of `module`. A tensor with NaN or infinite values is loaded all the same, with a warning.
    """
    parameters = dict(module.named_parameters())
    unmatched = sorted(parameters.keys() ^ rules.keys())
    assert not unmatched, f"no rule, or no parameter, for {unmatched}"
    for name, parameter in parameters.items():
        rule = rules[name]
        index = rank_index(name, shape=rule.shape, rank=tensor_parallel_rank, size=tensor_parallel_size)
        part = rule.read(checkpoint, index)
        assert not parameter.is_meta, f"{name} has no storage: call module.to_empty(device=...) first"
        assert part.shape == parameter.shape, (
            f"{name} is {tuple(parameter.shape)}, its part {tuple(part.shape)}"
        )
        parameter.copy_(part)
        _warn_if_not_finite(name, parameter)


def rank_index(name: str, *, shape: Shape, rank: int, size: int) -> Index:
    """The part of the tensor `name`, of the whole `shape`, that belongs to `rank` of `size` ranks."""
    whole = tuple(slice(0, length) for length in shape)
    axis = split_axis(name)
    if axis is None:
        return whole
    assert shape[axis] % size == 0, f"{name}: {shape[axis]} does not divide by {size} ranks"
    step = shape[axis] // size
    return (*whole[:axis], slice(rank * step, (rank + 1) * step), *whole[axis + 1 :])


def split_axis(name: str) -> int | None:
    """Along which axis tensor parallelism splits our parameter `name`; None: every rank has it whole."""
    if name in _VOCABULARY:
        return _COLUMN
    return _SPLIT_AXIS.get(name.split(".")[-2]) if name.startswith("decoder.layers.") else None


def _warn_if_not_finite(name: str, parameter: Tensor) -> None:
    # NaN and infinity show in the extremes, which are found much faster than every number is tested.
    if torch.isfinite(torch.stack(torch.aminmax(parameter))).all():
        return
    bad = parameter.numel() - int(torch.isfinite(parameter).sum())
    logger.warning("%s has %d NaN or infinite values: expect a broken video", name, bad)
