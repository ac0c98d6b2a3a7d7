"""Decoders of the video tokenizers on a GPU: their kernels, and decodes beside diffusers' in float32."""

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenizerShape, WanTokenizerShape
from cosmos_nemo.models.common import norm_silu, volumes
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, to_uint8
from cosmos_nemo.models.video_tokenizer.model import build_autoencoder as build_cosmos
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer
from cosmos_nemo.models.wan_tokenizer.model import build_autoencoder as build_wan

pytestmark = pytest.mark.gpu


def clip(channels: int, frames: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Channels last; frames of means and sizes of their own."""
    generator = torch.Generator("cuda").manual_seed(channels)
    x = torch.randn(2, channels, frames, height, width, device="cuda", generator=generator)
    x = 5 * x + 20 * torch.arange(frames, device="cuda")[:, None, None]
    return volumes.for_convolutions(x.to(dtype))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize(("channels", "height", "width"), [(96, 8, 6), (128, 44, 80), (512, 11, 3)])
def test_norms_with_silu_are_those_of_operations_in_float32(
    dtype: torch.dtype, limit: float, channels: int, height: int, width: int
) -> None:
    x = clip(channels, 3, height, width, dtype)
    norm = nn.GroupNorm(1, channels, eps=1e-6).cuda()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    gamma = torch.randn(channels, device="cuda").to(dtype)
    with torch.no_grad():
        wide = norm_silu.group_norm_silu(x.float(), norm), norm_silu.rms_norm_silu(x.float(), gamma.float())
        bare = norm_silu.group_norm_silu(x.float(), norm, silu=False)
    norm.to(dtype)
    with torch.inference_mode():
        found = norm_silu.group_norm_silu(x, norm), norm_silu.rms_norm_silu(x, gamma)
        assert near(norm_silu.group_norm_silu(x, norm, silu=False), bare) < 2 * limit
    for ours, exact in zip(found, wide, strict=True):
        assert ours.dtype == dtype and ours.stride() == x.stride()
        assert near(ours, exact) < 2 * limit


def near(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("frames", [1, 4])
def test_the_decode_of_cv8x8x8_in_bfloat16_is_as_near_to_float32_as_diffusers(frames: int) -> None:
    from cosmos_nemo.tools.standin_tokenizer import random_weights

    shape = TokenizerShape()
    weights = random_weights(shape, seed=0, parts=("decoder",))
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        made[dtype] = build_cosmos(shape, device="cuda", dtype=dtype, parts=("decoder",))
        for name, parameter in made[dtype].named_parameters():
            parameter.data.copy_(weights[name])
    latent = torch.randn(1, shape.latent_channels, frames, 32, 48, device="cuda").bfloat16()
    table_CT = torch.ones(shape.latent_channels, shape.statistics_frames, device="cuda")
    tokenizer = VideoTokenizer(made[torch.bfloat16], mean_CT=0 * table_CT, std_CT=table_CT)
    with torch.no_grad():
        exact = made[torch.float32].decode(latent.float()).sample
        theirs = made[torch.bfloat16].decode(latent).sample
    check(exact, theirs, {size: tokenizer.decode(latent, frames_per_piece=size) for size in (1, 2, 4)})


@pytest.mark.parametrize("frames", [1, 4])
def test_the_decode_of_wans_tokenizer_in_bfloat16_is_as_near_to_float32_as_diffusers(frames: int) -> None:
    shape = WanTokenizerShape()
    made = {torch.float32: build_wan(shape, device="cuda", dtype=torch.float32, parts=("decoder",))}
    generator = torch.Generator("cuda").manual_seed(0)
    for parameter in made[torch.float32].parameters():
        size = parameter[0].numel()
        parameter.data.normal_(generator=generator).div_(size**0.5) if size > 1 else parameter.data.fill_(0.5)
    made[torch.bfloat16] = build_wan(shape, device="cuda", dtype=torch.bfloat16, parts=("decoder",))
    made[torch.bfloat16].load_state_dict(made[torch.float32].state_dict())
    latent = torch.randn(1, shape.latent_channels, frames, 32, 48, device="cuda").bfloat16()
    ones = torch.ones(shape.latent_channels, device="cuda")
    tokenizer = WanTokenizer(made[torch.bfloat16], mean_C=0 * ones, std_C=ones)
    with torch.no_grad():
        exact = made[torch.float32].decode(latent.float()).sample
        theirs = made[torch.bfloat16].decode(latent).sample
    check(exact, theirs, {size: tokenizer.decode(latent, frames_per_piece=size) for size in (1, 2, 4)})


def check(exact: Tensor, theirs: Tensor, ours: dict[int, Tensor]) -> None:
    """Pieces of every size are as near to float32 as diffusers' decode, and near to each other."""
    assert exact.std() > 0.05
    error = near(theirs, exact)
    for size, video in ours.items():
        assert video.shape == exact.shape
        assert near(video, exact) < max(1.2 * error, 1e-3), size
        levels = (to_uint8(video).int() - to_uint8(theirs).int()).abs()
        assert levels.float().mean() < 2, size
