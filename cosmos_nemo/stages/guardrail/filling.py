"""Filling a guard's network from a released file whose tensor names are the network's own."""

from collections.abc import Collection

import torch
from torch import nn

from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError

_UNUSED = ".num_batches_tracked"
"""Counts training steps of a normalisation. Old files lack it, and nothing that is computed here reads it."""


def check_same_tensors(module: nn.Module, checkpoint: Checkpoint, *, ignored: Collection[str] = ()) -> None:
    """CheckpointError unless the file holds exactly the tensors of `module`, which may be on "meta".

    ignored: beginnings of names in the file that have no place in the module.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stored = [name for name in checkpoint.names() if not name.startswith(tuple(ignored))]
    missing = [name for name in wanted if name not in stored and not name.endswith(_UNUSED)]
    foreign = [name for name in stored if name not in wanted]
    other = [name for name in wanted if name in stored and checkpoint.shape(name) != wanted[name]]
    if missing:
        complaint = f"{len(missing)} of {len(wanted)} tensors missing, first: {missing[0]}"
    elif foreign:
        complaint = f"{len(foreign)} of {len(stored)} tensors belong to another network, first: {foreign[0]}"
    elif other:
        found, asked = checkpoint.shape(other[0]), wanted[other[0]]
        count = f"{len(other)} of {len(wanted)} tensors"
        complaint = f"{count} of another shape, first: {other[0]} is {found}, not {asked}"
    else:
        return
    raise CheckpointError(
        f"{checkpoint.path}: {complaint}. Is it the file of the guardrail's own repository, and complete?"
    )


@torch.no_grad()
def fill(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Fills the parameters and the stored buffers of `module`, on its device and in its dtype.

    The tensors must have been checked.
    """
    stored = set(checkpoint.names())
    for name, tensor in module.state_dict().items():
        if name in stored:
            tensor.copy_(checkpoint.read(name))
        else:
            assert name.endswith(_UNUSED), f"{name} is not in {checkpoint.path}: check_same_tensors first"
            tensor.zero_()
