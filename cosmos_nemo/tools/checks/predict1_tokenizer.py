"""The video tokenizer: latents, decoded videos and both again with normalised latents."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.checkpoint.tokenizer_names import match_names
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder
from cosmos_nemo.tools.checks import Case, Outputs, Tensors

# What the network is built with whatever the shape; a reference made otherwise is none of this tokenizer.
_FIXED = {"in_channels": 3, "out_channels": 3, "patch_method": "haar", "num_groups": 1, "formulation": "AE"}
_VIDEO = re.compile(r"inputs\.video_t(\d+)")
# The decode in its smallest pieces: what it carries from one to the next is checked with it.
_FRAMES_PER_PIECE = 1


def check(case: Case, tensors: Tensors, *, dtype: torch.dtype, device: torch.device) -> Outputs:
    """Of each video its latent and what the file's latent decodes to, with and without normalisation.

    Decoding starts from the latents in the file, so that an error of the encoder is not counted twice.
    """
    shape = tokenizer_shape(case["config"], tensors)
    plain = _plain(shape, tensors, dtype=dtype, device=device)
    kinds = {"latent_t{}": ("decoded_t{}", plain)}
    if "inputs.latent_mean_flat" in tensors:
        kinds["normalized_latent_t{}"] = ("normalized_roundtrip_t{}", _normalised(plain, shape, tensors))
    for frames, video_BCTHW in _videos(tensors):
        for latent_name, (decoded_name, tokenizer) in kinds.items():
            latent_BCTHW = tensors.get(f"outputs.{latent_name}".format(frames))
            if latent_BCTHW is None:
                continue
            with _full_float32():
                encoded_BCTHW = tokenizer.encode(video_BCTHW.to(device))
                decoded_BCTHW = tokenizer.decode(latent_BCTHW.to(device), frames_per_piece=_FRAMES_PER_PIECE)
            yield latent_name.format(frames), encoded_BCTHW
            yield decoded_name.format(frames), decoded_BCTHW.float()


@contextmanager
def _full_float32() -> Iterator[None]:
    """cuDNN's convolutions of float32 round to TF32 by default, which the tolerance forbids."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def tokenizer_shape(config: dict[str, Any], tensors: Tensors) -> TokenizerShape:
    """The sizes in a reference file; ValueError for a tokenizer of another kind."""
    expected = _FIXED | {"z_channels": config["latent_channels"]}
    other = {name: config[name] for name, value in expected.items() if config.get(name, value) != value}
    if other:
        raise ValueError(f"the reference was made with {other}: such a tokenizer is not built")
    latent_channels = config["latent_channels"]
    statistics = tensors.get("inputs.latent_mean_flat")
    sizes = {} if statistics is None else {"statistics_frames": statistics.numel() // latent_channels}
    return TokenizerShape(
        channels=config["channels"],
        channel_multipliers=tuple(config["channels_mult"]),
        num_res_blocks=config["num_res_blocks"],
        latent_channels=latent_channels,
        patch_size=config["patch_size"],
        spatial_compression=config["spatial_compression"],
        temporal_compression=config["temporal_compression"],
        **sizes,
    )


def _videos(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Each video with its number of frames as the names of its outputs have it."""
    for name, video_BCTHW in tensors.items():
        if found := _VIDEO.fullmatch(name):
            yield found[1], video_BCTHW


def _plain(
    shape: TokenizerShape, tensors: Tensors, *, dtype: torch.dtype, device: torch.device
) -> VideoTokenizer:
    """The file's weights, with statistics that change nothing."""
    weights = {
        name.removeprefix("weights."): tensor
        for name, tensor in tensors.items()
        if name.startswith("weights.")
    }
    match = match_names(shape, weights)
    if complaint := match.complaint():
        raise CheckpointError(f"weights of the reference file: {complaint}")
    autoencoder = build_autoencoder(shape, device=device, dtype=dtype)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[match.sources[name]])
    ones_CT = torch.ones(shape.latent_channels, shape.statistics_frames)
    return VideoTokenizer(autoencoder, mean_CT=torch.zeros_like(ones_CT), std_CT=ones_CT).to(device)


def _normalised(plain: VideoTokenizer, shape: TokenizerShape, tensors: Tensors) -> VideoTokenizer:
    """The same network with the file's statistics."""
    mean_CT, std_CT = (
        tensors[f"inputs.latent_{name}_flat"].view(shape.latent_channels, -1) for name in ("mean", "std")
    )
    return VideoTokenizer(plain.autoencoder, mean_CT=mean_CT, std_CT=std_CT).to(plain.mean_CT.device)
