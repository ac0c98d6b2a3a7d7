"""The folder of a video tokenizer of Wan2.1's kind as diffusers has it, statistics of the latents and all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.wan_tokenizer_names import tensor_shapes


def write_wan_folder(
    folder: Path, shape: WanTokenizerShape, weights: Mapping[str, Tensor], *, mean_C: Tensor, std_C: Tensor
) -> None:
    """Writes what AutoencoderKLWan.from_pretrained(folder) reads into `folder`, made if need be.

    weights: both parts under diffusers' names, in the number format of the file.
    """
    from safetensors.torch import save

    assert weights.keys() == tensor_shapes(shape).keys(), "not the tensors of such a tokenizer"
    assert mean_C.shape == std_C.shape == (shape.latent_channels,), (mean_C.shape, std_C.shape)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**_config(shape), "latents_mean": mean_C.tolist(), "latents_std": std_C.tolist()}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    # Not save_file, whose files only their owner may read.
    packed = save({name: values.contiguous() for name, values in weights.items()}, {"format": "pt"})
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(packed)


def _config(shape: WanTokenizerShape) -> dict[str, Any]:
    """Arguments of AutoencoderKLWan."""
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": shape.channels,
        "z_dim": shape.latent_channels,
        "dim_mult": shape.channel_multipliers,
        "num_res_blocks": shape.num_res_blocks,
        "attn_scales": [],
        "temperal_downsample": shape.halves_time,
        "dropout": 0.0,
        "scale_factor_temporal": shape.temporal_compression,
        "scale_factor_spatial": shape.spatial_compression,
    }
