"""The training loop: batches to losses to new weights, the same on every number of ranks."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.training.average import Average
from cosmos_nemo.training.data import Batch, Dataset, sample_index
from cosmos_nemo.training.given import Given, choices_of
from cosmos_nemo.training.objective import Objective, draw, noise_levels, objective_of
from cosmos_nemo.training.settings import TrainingError, TrainingSettings
from cosmos_nemo.training.update.base import Update


@dataclass(frozen=True)
class StepReport:
    """One finished step, numbered from 1. The loss is the mean over the global batch."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float


class LossError(TrainingError):
    """A loss or a gradient that is no number."""


@dataclass
class Training:
    """A network in training, and how far it has come."""

    card: ModelCard
    settings: TrainingSettings
    network: DiT
    update: Update
    average: Average | None
    dataset: Dataset
    groups: Groups
    device: torch.device
    step: int = 0

    @property
    def objective(self) -> Objective:
        return objective_of(self.card, num_latent_frames=self.dataset.latent_shape[1])

    def steps(self, *, wants_to_stop: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
        """Trains up to settings.num_steps, a report at a time; ends early once any rank wants to stop."""
        while self.step < self.settings.num_steps:
            started = time.perf_counter()
            agreed = _agreed(self._losses(), wants_to_stop(), groups=self.groups)
            learning_rate = self.settings.learning_rate_at(self.step + 1)
            norm = self.update.step(learning_rate)
            loss, stop = agreed.tolist()
            _check_finite(loss, norm, step=self.step + 1)
            self.step += 1
            if self.average is not None and self.step % self.settings.average_every == 0:
                self.average.update(self.update.shards)
            yield StepReport(self.step, loss, norm, learning_rate, time.perf_counter() - started)
            if stop:
                return

    def _losses(self) -> Tensor:
        """The mean loss of this replica's samples, whose gradients are left with the update."""
        settings, groups = self.settings, self.groups
        replicas, replica = groups.collection.dp.size(), groups.collection.dp.rank()
        own = settings.global_batch_size // replicas
        first = self.step * settings.global_batch_size + replica * own
        total = torch.zeros((), device=self.device)
        for start in range(0, own, settings.micro_batch_size):
            positions = range(first + start, first + start + settings.micro_batch_size)
            loss = self._loss(positions) / (own // settings.micro_batch_size)
            # The update takes the mean over replicas and context parallel ranks; the latter hold parts of a
            # sum.
            (loss * groups.collection.cp.size()).backward()
            total += loss.detach()
        return total

    def _loss(self, positions: range) -> Tensor:
        settings, objective = self.settings, self.objective
        indices = [sample_index(len(self.dataset), seed=settings.seed, position=k) for k in positions]
        batch = self.dataset.batch(indices)
        chance = draw(
            positions,
            self.dataset.latent_shape,
            seed=settings.seed,
            levels=noise_levels(settings, objective),
            text_dropout=settings.text_dropout,
            device=self.device,
            given=objective.given,
            choices_KT=choices_of(self.card, self.dataset.latent_shape[1]),
        )
        x0 = batch.latent_BCTHW.to(self.device, torch.float32) * self.card.sigma_data
        text = batch.text_BLD.to(self.device) * chance.keeps_text_B[:, None, None]
        network = self._network(text, batch, chance.given)
        return objective.loss(network, x0, chance).mean()

    def _network(
        self, text_BLD: Tensor, batch: Batch, given: Given | None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        network = self.network
        positions = network.positions(self.dataset.latent_shape[1:], fps=batch.fps)
        keys_and_values = network.encode_text(text_BLD)

        def raw(x_BCTHW: Tensor, levels: Tensor) -> Tensor:
            return network(
                x_BCTHW,
                modulation=network.modulate(levels),
                text=keys_and_values,
                positions=positions,
                given_mask_B1THW=None if given is None else given.mask_B1THW(x_BCTHW),
                recompute=self.settings.recompute == "full",
            )

        return raw


def _agreed(loss: Tensor, stop: bool, *, groups: Groups) -> Tensor:
    """The mean loss of the replicas, and a number above 0 if any rank wants to stop; read it late."""
    both = torch.stack([loss.float(), torch.full((), float(stop), device=loss.device)])
    # Ranks of one replica have the same loss, so that the mean over all ranks is the replicas' mean.
    dist.all_reduce(both, group=groups.world)
    return both / groups.world.size()


def _check_finite(loss: float, gradient_norm: float, *, step: int) -> None:
    if not loss < float("inf"):
        raise LossError(
            f"the loss of step {step} is {loss}: lower --learning_rate, and look for broken latents in "
            "the data."
        )
    if not gradient_norm < float("inf"):
        raise LossError(f"the gradient of step {step} is {gradient_norm}: lower --learning_rate.")
