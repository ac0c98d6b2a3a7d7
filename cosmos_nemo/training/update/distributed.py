"""Megatron's DDP and distributed optimizer: masters and moments split over the replicas. CUDA only.

megatron-core 0.15 allocates their buffers on the current CUDA device and takes CUDA parameters alone, so CPU
ranks train by update/replicated.py, which computes the same.
"""

import math

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from torch import Tensor

from cosmos_nemo.checkpoint.load import split_axis
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.training.settings import TrainingSettings
from cosmos_nemo.training.update.base import Shard, Update, adam_moments, sum_head_norms


class Distributed(Update):
    """ZeRO-1 by Megatron over all ranks that share a tensor parallel rank's weights (arXiv 1910.02054)."""

    is_sharded = True

    def __init__(self, network: DiT, *, settings: TrainingSettings, groups: Groups) -> None:
        self.network, self.groups = network, groups
        for name, parameter in network.named_parameters():
            axis = split_axis(name)
            parameter.tensor_model_parallel = axis is not None
            parameter.partition_dim = -1 if axis is None else axis
            parameter.partition_stride = 1
        self.ddp = DistributedDataParallel(
            network.config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=settings.gradient_dtype == "float32",
                use_distributed_optimizer=True,
                overlap_grad_reduce=False,
            ),
            network,
        )
        chained = get_megatron_optimizer(
            _config(network, settings), [self.ddp], use_gloo_process_groups=False
        )
        (self.optimizer,) = getattr(chained, "chained_optimizers", [chained])
        for group in self.optimizer.param_groups:  # Megatron leaves this to its learning rate scheduler
            group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        self.shards = self._find_shards()

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        self.ddp.finish_grad_sync()
        gradients = {name: parameter.main_grad for name, parameter in self.network.named_parameters()}
        sum_head_norms(self.network, gradients, self.groups.collection.tp)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        _, norm, _ = self.optimizer.step()
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        return float(norm)

    def publish(self) -> None:
        self.ddp.start_param_sync(force_sync=True)

    def moments(self, shard: Shard) -> dict[str, Tensor]:
        return adam_moments(self.optimizer.optimizer, shard.master)

    def set_step(self, step: int) -> None:
        """Transformer Engine's Adam counts per group, torch's per tensor."""
        adam = self.optimizer.optimizer
        for group in adam.param_groups:
            group["step"] = step
        if isinstance(adam, torch.optim.AdamW):
            for shard in self.shards:
                adam.state[shard.master]["step"] = torch.tensor(float(step))

    def _find_shards(self) -> list[Shard]:
        optimizer = self.optimizer
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        groups = [
            *zip(optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups, strict=True),
            *zip(optimizer.model_fp32_groups, optimizer.shard_fp32_groups, strict=True),
        ]
        found = []
        for parameters, masters in groups:
            for parameter, master in zip(parameters, masters, strict=True):
                part = optimizer._get_model_param_range_map(parameter)["param"]
                found.append(Shard(names[parameter], parameter, part.start, part.end, master))
        return sorted(found, key=lambda shard: shard.name)


def _config(network: DiT, settings: TrainingSettings) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam",
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        clip_grad=settings.clip_norm or math.inf,  # with 0 Megatron does not even work out the norm
        bf16=network.dtype == torch.bfloat16,
        params_dtype=network.dtype,
        use_distributed_optimizer=True,
    )
