"""safetensors, or a folder for diffusers' CosmosTransformer3DModel."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape, Family
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.formats import DIFFUSERS, IN_MEMORY, RELEASED
from cosmos_nemo.checkpoint.names import rules_for
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.rules import BlockDiagonal, Rule
from cosmos_nemo.checkpoint.writer.new_path import new_path

_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: DiTShape,
    card_overrides: Mapping[str, Any] | None = None,
) -> None:
    """Writes `folder/model.safetensors`; arguments, errors as write_torch_dist's.

    In the names of the released model.pt. Those have no place for the dense adaLN matrices of a post-trained
    network, whose tensors are called as in memory.
    """
    with new_path(folder) as partial:
        partial.mkdir()
        rules = rules_for(shape, RELEASED[shape.family], prefix="net.")
        if _has_dense_matrices(tensors, rules=rules):
            rules = rules_for(shape, IN_MEMORY, prefix="module.")
        write_file(partial / "model.safetensors", tensors, rules=rules)
        write_card_file(partial, dict(card_overrides or {}))


def write_diffusers(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: DiTShape,
    card_overrides: Mapping[str, Any] | None = None,
) -> None:
    """Writes what CosmosTransformer3DModel.from_pretrained(folder) reads; else as write_safetensors.

    CheckpointError too for dense adaLN matrices, for which it has no place.
    """
    with new_path(folder) as partial:
        partial.mkdir()
        rules = rules_for(shape, DIFFUSERS, prefix="")
        write_file(partial / "diffusion_pytorch_model.safetensors", tensors, rules=rules)
        (partial / "config.json").write_text(json.dumps(_diffusers_config(shape), indent=1) + "\n")
        write_card_file(partial, dict(card_overrides or {}))


def _has_dense_matrices(tensors: Mapping[str, LazyTensor], *, rules: Mapping[str, Rule]) -> bool:
    return any(
        rule.is_dense(tensors[name].read()) for name, rule in rules.items() if isinstance(rule, BlockDiagonal)
    )


def write_file(path: Path, tensors: Mapping[str, LazyTensor], *, rules: Mapping[str, Rule]) -> None:
    """One file, tensor by tensor, stored as `rules` say: the header needs only names, shapes and types."""
    assert tensors.keys() == rules.keys(), f"not the network: {sorted(tensors.keys() ^ rules.keys())[:3]}"
    with path.open("wb") as file:
        file.write(_header(tensors, rules=rules))
        for name, rule in rules.items():
            for part in rule.split(tensors[name].read()):
                _append(file, part)


def _header(tensors: Mapping[str, LazyTensor], *, rules: Mapping[str, Rule]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, rule in rules.items():
        dtype = tensors[name].dtype
        for stored, shape in zip(rule.names, rule.stored_shapes(), strict=True):
            begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            entries[stored] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _append(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _diffusers_config(shape: DiTShape) -> dict[str, Any]:
    """Arguments of CosmosTransformer3DModel (spec/predict1-diffusion.md, 2)."""
    return {
        "_class_name": "CosmosTransformer3DModel",
        "in_channels": shape.latent_channels + shape.takes_given_mask,
        "out_channels": shape.latent_channels,
        "num_attention_heads": shape.num_heads,
        "attention_head_dim": shape.head_dim,
        "num_layers": shape.num_layers,
        "mlp_ratio": shape.ffn_hidden_size / shape.hidden_size,
        "text_embed_dim": shape.text_dim,
        "adaln_lora_dim": shape.adaln_lora_dim,
        "max_size": (shape.max_latent_frames, shape.max_latent_height, shape.max_latent_width),
        "patch_size": (1, shape.patch_size, shape.patch_size),
        "rope_scale": shape.rope_ratios_THW,
        "concat_padding_mask": True,
        "extra_pos_embed_type": "learnable" if shape.family is Family.COSMOS1 else None,
    }
