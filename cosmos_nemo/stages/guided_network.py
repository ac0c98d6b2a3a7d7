"""A diffusion network as stages use it: filled from a checkpoint, and asked with guidance over all ranks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import Checkpoint
from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.common.dit.model import DiT, Positions
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.sampling.denoiser import Branch, branches_needed, guided
from cosmos_nemo.sampling.given import GivenFrames
from cosmos_nemo.sampling.rectified_flow import CleanFrames


def filled_network(
    shape: DiTShape,
    *,
    checkpoint: Checkpoint,
    backend: Backend,
    pg_collection: ProcessGroupCollection,
    device: torch.device,
    dtype: torch.dtype,
    rope_dtype: torch.dtype = torch.float32,
) -> DiT:
    """This rank's part of the network with its weights; CheckpointError, before it is built, for others'."""
    rules = network_rules(shape, checkpoint)
    network = build_network(
        shape,
        backend=backend,
        pg_collection=pg_collection,
        device=device,
        dtype=dtype,
        rope_dtype=rope_dtype,
    )
    load_into(
        network,
        checkpoint=checkpoint,
        rules=rules,
        tensor_parallel_rank=pg_collection.tp.rank(),
        tensor_parallel_size=pg_collection.tp.size(),
    )
    return network


class GuidedNetwork:
    """(scaled x, noise levels) -> guided F.

    With the branches on two halves of the ranks, each half computes one.
    """

    def __init__(
        self,
        network: DiT,
        *,
        groups: Groups,
        guidance: float,
        text: Mapping[Branch, Tensor],
        positions: Positions,
        told: Mapping[Branch, Tensor] | None = None,
    ) -> None:
        """text: embeddings [B, L, D]; told: of a network that is told something of every cell, its channels
        (see DiT.forward)."""
        self.network, self.groups, self.guidance, self.positions = network, groups, guidance, positions
        self.frames: GivenFrames | CleanFrames | None = None
        branches = branches_needed(guidance)
        self.halved = len(branches) == 2 and groups.plan.cfg == 2
        mine = branches[groups.cfg_rank : groups.cfg_rank + 1] if self.halved else branches
        self.conditions: list[dict[str, Any]] = [
            {
                "text": network.encode_text(text[branch]),
                "told_BCTHW": None if told is None else told[branch],
            }
            for branch in mine
        ]

    def __call__(self, x_BCTHW: Tensor, levels: Tensor) -> Tensor:
        """levels: c_noise as the network's `modulate` takes it."""
        modulation = self.network.modulate(levels)
        outputs = [
            self.network(
                x_BCTHW,
                modulation=modulation,
                positions=self.positions,
                given_mask_B1THW=None if self.frames is None else self.frames.mask_B1THW,
                **condition,
            )
            for condition in self.conditions
        ]
        if self.halved:
            outputs = self._exchange(outputs[0])
        return outputs[0] if len(outputs) == 1 else guided(outputs[0], outputs[1], self.guidance)

    def _exchange(self, output_BCTHW: Tensor) -> list[Tensor]:
        both = output_BCTHW.new_empty(2 * output_BCTHW.shape[0], *output_BCTHW.shape[1:])
        dist.all_gather_into_tensor(both, output_BCTHW.contiguous(), group=self.groups.cfg)
        return list(both.chunk(2))
