"""A tiny video tokenizer with random weights, ours and as diffusers builds it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.models.video_tokenizer.model import build_autoencoder
from cosmos_nemo.tools.standin_tokenizer import random_weights


def fill(autoencoder: nn.Module, shape: TokenizerShape) -> None:
    weights = random_weights(shape, seed=0)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[name])


@pytest.fixture
def tiny() -> TokenizerShape:
    return TokenizerShape(channels=8, channel_multipliers=(1, 2, 2), statistics_frames=6)


@pytest.fixture
def ours() -> Callable[..., nn.Module]:
    def build(shape: TokenizerShape, dtype: torch.dtype = torch.float32) -> nn.Module:
        autoencoder = build_autoencoder(shape, device="cpu", dtype=dtype)
        fill(autoencoder, shape)
        return autoencoder

    return build


@pytest.fixture
def theirs() -> Callable[..., nn.Module]:
    """Built the ordinary way: on the CPU, with diffusers' own call of the same sizes."""
    from diffusers import AutoencoderKLCosmos

    def build(shape: TokenizerShape, dtype: torch.dtype = torch.float32) -> nn.Module:
        widths = [shape.channels * multiplier for multiplier in shape.channel_multipliers]
        autoencoder = AutoencoderKLCosmos(
            encoder_block_out_channels=(shape.channels, *widths),
            decode_block_out_channels=(*widths, widths[-1]),
            num_layers=shape.num_res_blocks,
            latent_channels=shape.latent_channels,
            patch_size=shape.patch_size,
            spatial_compression_ratio=shape.spatial_compression,
            temporal_compression_ratio=shape.temporal_compression,
        )
        fill(autoencoder, shape)
        return nn.Module.to(autoencoder, dtype).eval()

    return build
