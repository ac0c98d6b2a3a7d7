"""How the gradients of all ranks become new weights: what both forms have in common.

The weights the network computes with may be bfloat16; Adam works on float32 master weights and moments.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

_HEAD_NORMS = ("q_layernorm.weight", "k_layernorm.weight")


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of one parameter that this rank updates: [start, stop) of the flattened parameter."""

    name: str
    parameter: nn.Parameter
    start: int
    stop: int
    master: Tensor
    """float32, one axis."""

    @property
    def weights(self) -> Tensor:
        """The part of the network's own weights, a view."""
        return self.parameter.data.view(-1)[self.start : self.stop]


class Update(ABC):
    """One optimizer step over all ranks. All methods but `moments` are collectives."""

    shards: list[Shard]
    is_sharded: bool
    """Whether the ranks that hold the same weights update different parts of them."""

    @abstractmethod
    def step(self, learning_rate: float) -> float:
        """Sums the ranks' gradients, clips and applies them, and clears them; the norm before clipping."""

    @abstractmethod
    def publish(self) -> None:
        """Makes every rank's weights whole again after shards of them were written."""

    @abstractmethod
    def moments(self, shard: Shard) -> dict[str, Tensor]:
        """Adam's two moments of the shard, by name; they may be written to."""

    @abstractmethod
    def set_step(self, step: int) -> None:
        """Tells Adam how many steps were taken, which its bias correction needs."""

    def show_masters(self) -> None:
        """Puts the master weights into the network, after they were read from a file."""
        for shard in self.shards:
            shard.weights.copy_(shard.master)
        self.publish()


def sum_head_norms(network: nn.Module, gradients: Mapping[str, Tensor], tp: ProcessGroup) -> None:
    """Adds up the gradients of the norms of queries and keys, of which each rank saw only its own heads."""
    if tp.size() == 1:
        return
    for name, _ in network.named_parameters():
        if name.endswith(_HEAD_NORMS):
            dist.all_reduce(gradients[name], group=tp)


def is_counted(*, split: bool, tp: ProcessGroup) -> bool:
    """Whether this rank's part of a parameter belongs in a sum over the tensor parallel ranks."""
    return split or tp.rank() == 0


def adam_moments(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Tensor]:
    """exp_avg and exp_avg_sq of a master weight; zeros, made now, before the first step."""
    state = optimizer.state[master]
    for name in ("exp_avg", "exp_avg_sq"):
        if name not in state:
            state[name] = torch.zeros_like(master)
    return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}
