"""Filling a guard's network from a released file whose tensor names are the network's own."""

from collections.abc import Collection

import torch
from torch import nn

from cosmos_nemo.checkpoint.mismatch import complaint
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError

_UNUSED = ".num_batches_tracked"
"""Counts training steps of a normalisation. Old files lack it, and nothing that is computed here reads it."""


def check_same_tensors(module: nn.Module, checkpoint: Checkpoint, *, ignored: Collection[str] = ()) -> None:
    """CheckpointError unless the file holds exactly the tensors of `module`, which may be on "meta".

    ignored: beginnings of names in the file that have no place in the module.
    """
    stored = {
        name: checkpoint.shape(name) for name in checkpoint.names() if not name.startswith(tuple(ignored))
    }
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if name in stored or not name.endswith(_UNUSED)
    }
    if wrong := complaint(expected, stored):
        raise CheckpointError(
            f"{checkpoint.path}: {wrong}. Is it the file of the guardrail's own repository, and complete?"
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
