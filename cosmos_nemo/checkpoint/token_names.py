"""How each tensor of the autoregressive transformer is read from a file of any format."""

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.mismatch import complaint
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError
from cosmos_nemo.checkpoint.rules import Rule
from cosmos_nemo.checkpoint.token_formats import (
    detect_token_format,
    expected_tensors,
    token_network_names,
    token_rules_for,
)
from cosmos_nemo.checkpoint.token_sizes import advice


def token_rules(
    shape: TokenShape, checkpoint: Checkpoint, *, tensor_parallel_size: int = 1
) -> dict[str, Rule]:
    """Our name -> how the tensor is read from `checkpoint`, whose format its names tell; for load_into.

    `tensor_parallel_size` must be load_into's. CheckpointError if a tensor is missing, of another shape, or
    unexpected, with the nearest name, and with the model whose sizes the file has.
    """
    stored = detect_token_format(checkpoint)
    rules = token_rules_for(shape, stored, tensor_parallel_size=tensor_parallel_size)
    held = {name: checkpoint.shape(name) for name in token_network_names(checkpoint)}
    if wrong := complaint(expected_tensors(rules), held):
        raise CheckpointError(f"{checkpoint.path}: {wrong}. {advice(shape, checkpoint)}")
    return rules
