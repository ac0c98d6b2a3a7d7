"""The middle block of encoder and decoder: the only one with attention."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos_nemo.models.common.causal import Carry, repeat_first
from cosmos_nemo.models.common.norm_silu import group_norm_silu
from cosmos_nemo.models.common.volumes import in_memory_as
from cosmos_nemo.models.video_tokenizer.blocks import over_space, resnet_block

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosCausalAttention, CosmosMidBlock3d


def middle(block: "CosmosMidBlock3d", x: Tensor) -> Tensor:
    """The block on a whole clip [B, C, T, H, W], with a few frames at a time in its spatial attention."""
    num_frames, whole = x.shape[2], Carry(repeat_first)
    past = torch.ones(num_frames, num_frames, dtype=torch.bool, device=x.device).tril()
    x = resnet_block(block.resnets[0], x, whole)
    for spatial, temporal, resnet in zip(
        block.attentions, block.temp_attentions, block.resnets[1:], strict=True
    ):
        groups = x.split(_few_frames(num_frames), dim=2)
        x = torch.cat([_attend(spatial, frames, "(b t) (h w) c") for frames in groups], dim=2)
        x = _attend(temporal, x, "(b h w) t c", past)
        x = resnet_block(resnet, x, whole)
    return x


def _attend(attention: "CosmosCausalAttention", x: Tensor, tokens: str, mask: Tensor | None = None) -> Tensor:
    """x and the attention, of one head, among what `tokens` names second."""
    assert attention.num_attention_heads == 1, "attention of several heads"
    batch, _, frames, height, width = x.shape
    normed = group_norm_silu(x, attention.norm.norm, silu=False)
    q, k, v = (
        rearrange(over_space(to, normed), f"b c t h w -> {tokens}").unsqueeze(1)
        for to in (attention.to_q, attention.to_k, attention.to_v)
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).squeeze(1)
    sizes = {"b": batch, "t": frames, "h": height, "w": width}
    out = rearrange(out, f"{tokens} -> b c t h w", **sizes)
    return over_space(attention.to_out[0], in_memory_as(x, out)).add_(x)


def _few_frames(num_frames: int) -> list[int]:
    """Groups for the spatial attention, whose scores of all frames would not fit: twos, and a last three.

    Not ones: the product of a single matrix takes another CUDA kernel than a batch and rounds differently.
    """
    groups = [2] * (num_frames // 2) or [1]
    groups[-1] += num_frames - sum(groups)
    return groups
