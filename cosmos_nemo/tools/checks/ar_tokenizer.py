"""The discrete video tokenizer: patches, codes and ids of a video and of its first frame, videos of ids."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint.discrete_tokenizer_names import match_names
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.models.discrete_tokenizer import fsq
from cosmos_nemo.models.discrete_tokenizer.model import DiscreteTokenizer, build_autoencoder
from cosmos_nemo.tools.checks import Case, Outputs, Tensors

# What the network is built with whatever the shape; a reference made otherwise is none of this tokenizer.
_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "patch_method": "haar",
    "num_groups": 1,
    "z_factor": 1,
    "legacy_mode": False,
}
# The decode in its smallest pieces: what it carries from one to the next is checked with it.
_FRAMES_PER_PIECE = 1


def check(case: Case, tensors: Tensors, *, dtype: torch.dtype, device: torch.device) -> Outputs:
    """Each output of the file that is known.

    Decoding starts from the ids in the file, so that an error of the encoder is not counted twice.
    In bfloat16 codes and ids are not those of the file, nor are upstream's, which flips two ids of five.
    """
    shape = tokenizer_shape(case["config"])
    tokenizer = _tokenizer(shape, tensors, dtype=dtype, device=device)

    def given(name: str) -> Tensor:
        return tensors[name].to(device)

    def decoded(name: str) -> Tensor:
        return tokenizer.decode(given(name), frames_per_piece=_FRAMES_PER_PIECE).float()

    makers: dict[str, Callable[[], Tensor]] = {
        "patched_input": lambda: tokenizer.autoencoder.encoder.patch_embed(given("inputs.video").float()),
        "prequant": lambda: tokenizer.encode_unrounded(given("inputs.video")),
        "codes": lambda: fsq.nearest_codes(tokenizer.encode_unrounded(given("inputs.video")), shape.levels),
        "indices": lambda: tokenizer.encode(given("inputs.video")),
        "indices_first_frame_only": lambda: tokenizer.encode(given("inputs.video")[:, :, :1]),
        "decoded": lambda: decoded("outputs.indices"),
        "decoded_random": lambda: decoded("inputs.random_indices"),
    }
    for name, make in makers.items():
        if f"outputs.{name}" in tensors:
            # cuDNN's convolutions of float32 round to TF32 by default, which the tolerance forbids.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                made = make()
            yield name, made


def tokenizer_shape(config: dict[str, Any]) -> DiscreteTokenizerShape:
    """The sizes in a reference file; ValueError for a tokenizer of another kind."""
    expected = _FIXED | {"embedding_dim": len(config["levels"])}
    other = {name: config[name] for name, value in expected.items() if config.get(name, value) != value}
    widths = [
        config.get("resolution", 0) // config["patch_size"] // 2**i
        for i in range(len(config["channels_mult"]))
    ]
    if set(widths) & set(config.get("attn_resolutions", ())):
        other["attn_resolutions"] = config["attn_resolutions"]
    if other:
        raise ValueError(f"the reference was made with {other}: such a tokenizer is not built")
    return DiscreteTokenizerShape(
        channels=config["channels"],
        channel_multipliers=tuple(config["channels_mult"]),
        num_res_blocks=config["num_res_blocks"],
        latent_channels=config["z_channels"],
        levels=tuple(config["levels"]),
        patch_size=config["patch_size"],
        spatial_compression=config["spatial_compression"],
        temporal_compression=config["temporal_compression"],
    )


def _tokenizer(
    shape: DiscreteTokenizerShape, tensors: Tensors, *, dtype: torch.dtype, device: torch.device
) -> DiscreteTokenizer:
    """The file's weights."""
    weights = {
        name.removeprefix("weights."): values
        for name, values in tensors.items()
        if name.startswith("weights.")
    }
    match = match_names(shape, weights)
    if complaint := match.complaint():
        raise CheckpointError(f"weights of the reference file: {complaint}")
    autoencoder = build_autoencoder(shape, device=device, dtype=dtype)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[match.sources[name]])
    return DiscreteTokenizer(autoencoder, levels=shape.levels)
