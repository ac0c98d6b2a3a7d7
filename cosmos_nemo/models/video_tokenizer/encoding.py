"""Encoding a video as diffusers' AutoencoderKLCosmos does, with less memory and in bfloat16 on a CPU too."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_nemo.models.video_tokenizer.middle import middle

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosDownsample3d


@torch.no_grad()
def encode(autoencoder: "AutoencoderKLCosmos", video_BCTHW: Tensor) -> Tensor:
    """The latent, not normalised, of a video -1..1.

    In the network's number format but for the Haar patches, which are float32.
    """
    encoder = autoencoder.encoder
    patches = encoder.patch_embed(video_BCTHW.float())
    x = encoder.conv_in(patches.to(autoencoder.dtype))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        for downsampler in block.downsamplers or ():
            x = _downsample(downsampler, x)
    x = middle(encoder.mid_block, x)
    x = encoder.conv_out(F.silu(encoder.norm_out(x), inplace=True))
    return autoencoder.quant_conv(x)


def _downsample(block: "CosmosDownsample3d", x: Tensor) -> Tensor:
    """Half the rows and columns, then half the frames, the first of which counts twice.

    The means are taken over two axes because three have no bfloat16 kernel on a CPU.
    """
    if block.spatial_downsample:
        mean = F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        x = block.conv1(F.pad(x, (0, 1, 0, 1))).add_(mean)
    if block.temporal_downsample:
        x = torch.cat([x[:, :, :1], x], dim=2)
        mean = F.avg_pool2d(x.flatten(3), (2, 1)).unflatten(3, x.shape[3:])
        x = block.conv2(x).add_(mean)
    return block.conv3(x)
