"""The exponential moving average of the weights, which makes better videos than the weights themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos_nemo.training.update.base import Shard


class Average:
    """Averages the float32 masters of this rank's shards; on their device, or in host memory.

    The decay is smaller at first, min(decay, (1 + n) / (10 + n)) after n updates, so that the beginning is
    forgotten. In host memory the masters pass through one buffer of the largest shard.
    """

    def __init__(self, shards: Sequence[Shard], *, decay: float, in_host_memory: bool) -> None:
        self.decay, self.num_updates = decay, 0
        self.values = {
            shard.name: shard.master.detach().to("cpu" if in_host_memory else shard.master.device, copy=True)
            for shard in shards
        }

    @torch.no_grad()
    def update(self, shards: Sequence[Shard]) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        here = [shard for shard in shards if self.values[shard.name].device == shard.master.device]
        if here:
            torch._foreach_lerp_(
                [self.values[shard.name] for shard in here], [shard.master for shard in here], 1 - decay
            )
        for shard in shards:
            value: Tensor = self.values[shard.name]
            if value.device != shard.master.device:
                value.lerp_(shard.master.detach().to(value.device), 1 - decay)
