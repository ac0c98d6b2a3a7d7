"""Opening a diffusion network's checkpoint."""

import re
from pathlib import Path

from cosmos_nemo.checkpoint.lora import merge_lora
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint

_REGULAR, _AVERAGED = "net.", "net_ema."
_COUNTER = re.compile(r"(net(_ema)?\.)?accum_")


def open_network(path: Path, *, averaged: bool = False) -> Checkpoint:
    """As open_checkpoint, with low-rank post-training merged into the weights that it changes.

    A .pt file of Predict2 may hold the weights, their moving average over the training, or both: `averaged`
    takes the average. CheckpointError if the file does not hold those that are asked for.
    """
    return merge_lora(choose_weights(open_checkpoint(path), averaged=averaged))


def choose_weights(checkpoint: Checkpoint, *, averaged: bool) -> Checkpoint:
    """The weights, or their moving average, of a checkpoint that may hold both; see open_network."""
    has_weights, has_average = holds(checkpoint)
    if averaged and not has_average:
        raise CheckpointError(
            f"{checkpoint.path} holds no moving average of its weights ({_AVERAGED}...): leave out --load_ema"
        )
    if not has_average:
        return checkpoint
    if not averaged and not has_weights:
        raise CheckpointError(
            f"{checkpoint.path} holds the moving average of its weights alone: pass --load_ema (for "
            "training, to `cosmos-nemo convert` first)"
        )
    return checkpoint.under(_AVERAGED if averaged else _REGULAR)


def holds(checkpoint: Checkpoint) -> tuple[bool, bool]:
    """Whether it holds weights, and whether it holds their moving average; counters are neither."""
    names = [name for name in checkpoint.names() if not _COUNTER.match(name)]
    average = [name for name in names if name.startswith(_AVERAGED)]
    return len(average) < len(names), bool(average)
