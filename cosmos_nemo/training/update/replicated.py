"""Every rank holds and updates the whole of its weights: for CPU ranks, and for a GPU without replicas."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_nemo.checkpoint.load import split_axis
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.training.settings import TrainingSettings
from cosmos_nemo.training.update.base import Shard, Update, adam_moments, is_counted, sum_head_norms

_AT_ONCE = 2**28
"""Elements whose float32 gradients exist at the same time: 1 GiB."""


class Replicated(Update):
    """torch's AdamW on float32 copies of all weights, a portion at a time.

    Gradients are kept in `settings.gradient_dtype` and summed over micro-batches and ranks in it.
    """

    is_sharded = False

    def __init__(self, network: nn.Module, *, settings: TrainingSettings, groups: Groups) -> None:
        self.network, self.groups, self.clip_norm = network, groups, settings.clip_norm
        self.gradients: dict[str, Tensor] = {}
        dtype = getattr(torch, settings.gradient_dtype)
        self.shards = [_whole(name, parameter) for name, parameter in network.named_parameters()]
        for shard in self.shards:
            shard.parameter.register_post_accumulate_grad_hook(_collector(self.gradients, shard.name, dtype))
        self.portions = [
            (
                portion,
                torch.optim.AdamW(
                    _groups_by_decay(portion, settings.weight_decay),
                    lr=settings.learning_rate,
                    betas=settings.adam_betas,
                    fused=True,
                ),
            )
            for portion in _portions(self.shards)
        ]

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        self._sum_over_ranks()
        norm = self._norm()
        factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1) if self.clip_norm > 0 else norm.new_ones(())
        for portion, adam in self.portions:
            for shard in portion:
                gradient = self.gradients.pop(shard.name).float().flatten()
                shard.master.grad = gradient.mul_(factor)
            for group in adam.param_groups:
                group["lr"] = learning_rate
            adam.step()
            adam.zero_grad()
            for shard in portion:
                shard.weights.copy_(shard.master)
        return float(norm)

    def publish(self) -> None:
        """Nothing to do: every rank has written the whole."""

    def moments(self, shard: Shard) -> dict[str, Tensor]:
        return adam_moments(self._adam_of(shard), shard.master)

    def set_step(self, step: int) -> None:
        for shard in self.shards:
            state = self._adam_of(shard).state[shard.master]
            state["step"] = torch.tensor(float(step), device=shard.master.device)

    def _adam_of(self, shard: Shard) -> torch.optim.AdamW:
        return next(adam for portion, adam in self.portions if shard in portion)

    def _sum_over_ranks(self) -> None:
        everyone = self.groups.collection.dp_cp
        if everyone.size() > 1:
            for shard in self.shards:
                self.gradients[shard.name] /= everyone.size()
                dist.all_reduce(self.gradients[shard.name], group=everyone)
        sum_head_norms(self.network, self.gradients, self.groups.collection.tp)

    def _norm(self) -> Tensor:
        tp = self.groups.collection.tp
        counted = [
            torch.linalg.vector_norm(self.gradients[shard.name], dtype=torch.float32)
            for shard in self.shards
            if is_counted(split=split_axis(shard.name) is not None, tp=tp)
        ]
        device = self.shards[0].master.device
        square = torch.stack(counted).square().sum() if counted else torch.zeros((), device=device)
        if tp.size() > 1:
            dist.all_reduce(square, group=tp)
        return square.sqrt()


def _whole(name: str, parameter: nn.Parameter) -> Shard:
    flat = parameter.detach().flatten()
    master = flat.clone() if flat.dtype == torch.float32 else flat.float()
    return Shard(name, parameter, 0, parameter.numel(), master)


def _collector(gradients: dict[str, Tensor], name: str, dtype: torch.dtype) -> Callable[[Tensor], None]:
    """A parameter's hook, which moves its gradient to `gradients`.

    It must not refer to the update: Python's garbage collector does not see a tensor's hooks, so that the
    network, its gradients and the process groups would outlive the training.
    """

    def collect(parameter: Tensor) -> None:
        gradient = parameter.grad
        parameter.grad = None
        assert gradient is not None
        if name in gradients:
            gradients[name] += gradient
        else:
            gradients[name] = gradient.to(dtype)

    return collect


def _groups_by_decay(shards: list[Shard], weight_decay: float) -> list[dict[str, Any]]:
    """As Megatron does: the weights of norms do not decay."""
    norms = [shard.master for shard in shards if shard.parameter.ndim == 1]
    others = [shard.master for shard in shards if shard.parameter.ndim > 1]
    groups = [(others, weight_decay), (norms, 0.0)]
    return [{"params": masters, "weight_decay": decay} for masters, decay in groups if masters]


def _portions(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    portion: list[Shard] = []
    for shard in shards:
        if portion and sum(s.master.numel() for s in portion) + shard.master.numel() > _AT_ONCE:
            yield portion
            portion = []
        portion.append(shard)
    if portion:
        yield portion
