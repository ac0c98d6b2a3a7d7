"""Opening a diffusion network's checkpoint."""

from pathlib import Path

from cosmos_nemo.checkpoint.lora import merge_lora
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint

_REGULAR, _AVERAGED = "net.", "net_ema."


def open_network(path: Path, *, averaged: bool = False) -> Checkpoint:
    """As open_checkpoint, with low-rank post-training merged into the weights that it changes.

    A .pt file of Predict2 may hold the weights, their moving average over the training, or both: `averaged`
    takes the average. CheckpointError if the file does not hold those that are asked for.
    """
    return merge_lora(_weights_of(open_checkpoint(path), averaged=averaged))


def _weights_of(checkpoint: Checkpoint, *, averaged: bool) -> Checkpoint:
    names = list(checkpoint.names())
    has_average = any(name.startswith(_AVERAGED) for name in names)
    if averaged and not has_average:
        raise CheckpointError(
            f"{checkpoint.path} holds no moving average of its weights ({_AVERAGED}...): leave out --load_ema"
        )
    if not has_average:
        return checkpoint
    if not averaged and not any(name.startswith(_REGULAR) for name in names):
        raise CheckpointError(
            f"{checkpoint.path} holds the moving average of its weights alone: pass --load_ema"
        )
    return checkpoint.under(_AVERAGED if averaged else _REGULAR)
