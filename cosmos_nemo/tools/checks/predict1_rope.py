"""Axis slices of full-size RoPE angle tables. No network: the output's name says its precision."""

import re

import torch
from einops import rearrange

from cosmos_nemo.models.common.rope import rope_angles
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors

_NAME = re.compile(
    r"outputs\.(?P<table>(?P<model>.+)_fps(?P<fps>[\d.]+)_(?P<form>f32|bf16))\.(?P<axis>[thw])_axis"
)
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_BASE_FPS = 24.0


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """MODEL_fpsFPS_FORM.{t,h,w}_axis; the ratios of MODEL are in the .json, lengths those of the outputs."""
    tables: dict[str, tuple[re.Match[str], dict[str, int]]] = {}
    for name, tensor in tensors.items():
        if match := _NAME.fullmatch(name):
            _, lengths = tables.setdefault(match["table"], (match, {"t": 1, "h": 1, "w": 1}))
            lengths[match["axis"]] = len(tensor)
    for table, (match, lengths) in tables.items():
        ratios = case["ratios"][match["model"]]
        angles_S11K = rope_angles(
            (lengths["t"], lengths["h"], lengths["w"]),
            head_dim=case["head_dim"],
            ratios_THW=(ratios["t"], ratios["h"], ratios["w"]),
            fps=float(match["fps"]),
            base_fps=_BASE_FPS,
            dtype=_DTYPES[match["form"]],
        )
        angles_THWK = rearrange(angles_S11K, "(t h w) 1 1 k -> t h w k", t=lengths["t"], h=lengths["h"])
        axes = {"t": angles_THWK[:, 0, 0], "h": angles_THWK[0, :, 0], "w": angles_THWK[0, 0, :]}
        for axis, angles in axes.items():
            if f"outputs.{table}.{axis}_axis" in tensors:
                yield f"{table}.{axis}_axis", angles.to(options.device)
