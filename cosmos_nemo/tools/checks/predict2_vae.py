"""Wan2.1's video tokenizer: latents of a video and of its beginning, videos of latents."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.checkpoint.wan_tokenizer_names import match_names
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer, build_autoencoder
from cosmos_nemo.tools.checks import Case, Outputs, Tensors

# What the network is built with whatever the shape; a reference made otherwise is none of this tokenizer.
_FIXED: dict[str, Any] = {"attn_scales": [], "is_residual": False}
_WINDOW = re.compile(r"latent_of_video_window(\d+)")


def check(case: Case, tensors: Tensors, *, dtype: torch.dtype, device: torch.device) -> Outputs:
    """Of the video its latents, whole, in other windows and of its first frame; of each latent the video.

    Decoding starts from the latents in the file, so that an error of the encoder is not counted twice.
    """
    tokenizer = _tokenizer(tokenizer_shape(case), tensors, dtype=dtype, device=device)
    for name in tensors:
        kind, _, output = name.partition(".")
        if kind != "outputs":
            continue
        # cuDNN's convolutions of float32 round to TF32 by default, which the tolerance forbids.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            made = _made(output, tokenizer, tensors, device=device)
        if made is not None:
            yield output, made.float()


def tokenizer_shape(case: Case) -> WanTokenizerShape:
    """The sizes in a reference file; ValueError for a tokenizer of another kind."""
    other = {name: case[name] for name, value in _FIXED.items() if case.get(name, value) != value}
    if other:
        raise ValueError(f"the reference was made with {other}: such a tokenizer is not built")
    multipliers, halves_time = tuple(case["dim_mult"]), tuple(case["temporal_downsample"])
    return WanTokenizerShape(
        channels=case["dim"],
        channel_multipliers=multipliers,
        num_res_blocks=case["num_res_blocks"],
        latent_channels=case["z_dim"],
        halves_time=halves_time,
        spatial_compression=2 ** (len(multipliers) - 1),
        temporal_compression=2 ** sum(halves_time),
    )


def _made(output: str, tokenizer: WanTokenizer, tensors: Tensors, *, device: torch.device) -> Tensor | None:
    """What our code makes of the inputs of `output`; None if it is not known what that is."""

    def given(name: str) -> Tensor:
        return tensors[name].to(device)

    if output == "latent_of_video":
        return tokenizer.encode(given("inputs.video"))
    if window := _WINDOW.fullmatch(output):
        return tokenizer.encode(given("inputs.video"), frames_per_window=int(window[1]))
    if output == "latent_of_first_frame":
        return tokenizer.encode(given("inputs.video")[:, :, :1])
    if output == "video_of_latent":
        return tokenizer.decode(given("inputs.latent"))
    if output == "video_of_latent_of_video":
        return tokenizer.decode(given("outputs.latent_of_video"))
    if output == "image_of_latent":
        return tokenizer.decode(given("outputs.latent_of_first_frame"))
    return None


def _tokenizer(
    shape: WanTokenizerShape, tensors: Tensors, *, dtype: torch.dtype, device: torch.device
) -> WanTokenizer:
    """The file's weights and statistics."""
    weights = dict(_under("weights.", tensors))
    sources, wrong = match_names(shape, {name: tuple(values.shape) for name, values in weights.items()})
    if wrong:
        raise CheckpointError(f"weights of the reference file: {wrong}")
    autoencoder = build_autoencoder(shape, device=device, dtype=dtype)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[sources[name]])
    mean_C, std_C = tensors["inputs.latents_mean"], tensors["inputs.latents_std"]
    return WanTokenizer(autoencoder, mean_C=mean_C, std_C=std_C).to(device)


def _under(prefix: str, tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    return (
        (name.removeprefix(prefix), values) for name, values in tensors.items() if name.startswith(prefix)
    )
