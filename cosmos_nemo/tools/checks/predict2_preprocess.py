"""Pictures and clips made ready for Predict2. No network: uint8 and float32 whatever --dtype says."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from cosmos_nemo.stages.visual_input import cropped, unit_pixels
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors

_FRAMES_PER_LATENT = 4


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Per case video_ and normalized_ of its picture, and video_from_clip_ of the frames kept of its clip."""
    lengths = case["num_video_frames"]
    for number, one in enumerate(case["cases"]):
        size = {"height": one["target_h"], "width": one["target_w"]}
        image_THWC = cropped(tensors[f"inputs.image_{number}"].to(options.device)[None], **size)
        black_1HWC = torch.zeros_like(image_THWC)
        yield f"video_{number}", _filled(image_THWC, black_1HWC, lengths["image"])
        yield f"normalized_{number}", unit_pixels(image_THWC)
        for name, latents in _kept(number, tensors):
            kept = _FRAMES_PER_LATENT * (latents - 1) + 1
            clip_THWC = cropped(tensors[f"inputs.clip_{number}"][-kept:].to(options.device), **size)
            yield name, _filled(clip_THWC, clip_THWC[-1:], lengths["clip"])


def _kept(number: int, tensors: Tensors) -> Iterator[tuple[str, int]]:
    """The outputs that are made of this clip, and of how many latent frames each keeps the pixels."""
    for key in sorted(tensors):
        found = re.fullmatch(rf"outputs\.(video_from_clip_{number}_cond(\d+))", key)
        if found is not None:
            yield found[1], int(found[2])


def _filled(frames_THWC: Tensor, filler_1HWC: Tensor, num_frames: int) -> Tensor:
    """The frames and as many fillers as make num_frames, [1, 3, T, H, W]."""
    missing = num_frames - len(frames_THWC)
    return torch.cat([frames_THWC, filler_1HWC.expand(missing, -1, -1, -1)]).permute(3, 0, 1, 2)[None]
