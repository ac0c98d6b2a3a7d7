"""Which form of the update a run takes."""

import torch

from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.training.settings import TrainingError, TrainingSettings
from cosmos_nemo.training.update.base import Update


def form_of_update(settings: TrainingSettings, *, num_replicas: int, device: torch.device) -> str:
    """ "replicated" or "distributed"; TrainingError where the form asked for cannot run.

    num_replicas: ranks that hold the same weights, data and context parallel ones together.
    """
    if settings.optimizer == "distributed" and device.type != "cuda":
        raise TrainingError(
            "--optimizer distributed needs CUDA: Megatron keeps its buffers there. Pass --optimizer auto."
        )
    if settings.optimizer == "auto":
        return "distributed" if device.type == "cuda" and num_replicas > 1 else "replicated"
    return settings.optimizer


def make_update(network: DiT, *, settings: TrainingSettings, groups: Groups, device: torch.device) -> Update:
    """The update of `network`, whose parameters must be filled and want gradients."""
    form = form_of_update(settings, num_replicas=groups.collection.dp_cp.size(), device=device)
    if form == "replicated":
        from cosmos_nemo.training.update.replicated import Replicated

        return Replicated(network, settings=settings, groups=groups)
    from cosmos_nemo.training.update.distributed import Distributed

    return Distributed(network, settings=settings, groups=groups)
