"""The names under which Megatron's dist_checkpointing keeps a network: layers stacked, no extra states."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import nn

_EXTRA = "_extra_state"


def stacked_layers(
    layers: Iterable[nn.Module],
    *,
    prefix: str,
    sharded_offsets: tuple[Any, ...],
    metadata: dict[str, Any] | None,
    stored_names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One sharded tensor per kind of parameter, the layer as its first axis, as Megatron's block does.

    prefix: of the modules that hold `layers`; stored_names: how a layer's names begin -> as they are stored.
    """
    from megatron.core.dist_checkpointing.utils import apply_prefix_mapping, replace_prefix_for_sharding

    found: dict[str, Any] = {}
    all_layers = list(layers)
    for index, layer in enumerate(all_layers):
        local, shared = f"{prefix}layers.{index}.", f"{prefix}layers."
        offsets = (*sharded_offsets, (0, index, len(all_layers)))
        state: dict[str, Any] = cast(Any, layer).sharded_state_dict(local, offsets, metadata)
        replace_prefix_for_sharding(state, local, shared)
        if stored_names:
            apply_prefix_mapping(state, {shared + own: shared + there for own, there in stored_names.items()})
        found.update(state)
    return found


def without_extra_states(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without what Transformer Engine keeps of numbers in 8 bits: no checkpoint needs it, and most lack it.

    Megatron's loader would stop at an object that the checkpoint does not have.
    """
    return {name: value for name, value in state.items() if not name.endswith(_EXTRA)}
