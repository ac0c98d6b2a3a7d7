"""The middle block of encoder and decoder: the only one with attention."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosMidBlock3d


def middle(block: "CosmosMidBlock3d", x: Tensor) -> Tensor:
    """The block on a whole clip [B, C, T, H, W], with a few frames at a time in its spatial attention."""
    num_frames = x.shape[2]
    past = torch.ones(num_frames, num_frames, dtype=torch.bool, device=x.device).tril()
    x = block.resnets[0](x)
    for spatial, temporal, resnet in zip(
        block.attentions, block.temp_attentions, block.resnets[1:], strict=True
    ):
        x = torch.cat([spatial(frames) for frames in x.split(_few_frames(num_frames), dim=2)], dim=2)
        x = resnet(temporal(x, past))
    return x


def _few_frames(num_frames: int) -> list[int]:
    """Groups for the spatial attention, whose scores of all frames would not fit: twos, and a last three.

    Not ones: the product of a single matrix takes another CUDA kernel than a batch and rounds differently.
    """
    groups = [2] * (num_frames // 2) or [1]
    groups[-1] += num_frames - sum(groups)
    return groups
