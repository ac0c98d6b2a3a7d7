"""An image as Qwen2.5-VL's vision tower reads it (transformers' Qwen2VLImageProcessor, without torchvision).

H W are rows and columns in pixels, C colors; N patches of D numbers each.
"""

from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy
import torch
from einops import repeat
from torch import Tensor

from cosmos_nemo.checkpoint.refiner_names import TowerShape
from cosmos_nemo.stages.item_error import ItemError

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the colors red, green and blue between 0 and 1, over the images that the tower was trained on."""

_FEWEST_TOKENS, _MOST_TOKENS = 256, 1280
"""That an image becomes: with the released patches, 200,704 to 1,003,520 pixels."""

_LONGEST = 200
"""Times as long as it is wide: beyond, no size is between the bounds."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """An image in patches; those that become one token together stand next to each other."""

    values_ND: Tensor
    """float32, about -2..2.3."""
    rows: int
    columns: int
    """Of patches."""


def fitted_size(height: int, width: int, tower: TowerShape) -> tuple[int, int]:
    """Rows and columns, in pixels, of whole tokens; scaled up or down to as many tokens as are allowed.

    ItemError for an image more than 200 times as long as it is wide.
    """
    if max(height, width) > _LONGEST * min(height, width):
        raise ItemError(
            f"The image of {width}x{height} pixels is more than {_LONGEST} times as long as it is wide, and "
            "the prompt refiner cannot look at such a one. Crop it, or write the prompt yourself and pass "
            "--disable_prompt_upsampler."
        )
    side = tower.patch_size * tower.merge_size
    rows, columns = round(height / side), round(width / side)
    if rows * columns > _MOST_TOKENS:
        shrink = sqrt(height * width / (_MOST_TOKENS * side**2))
        rows, columns = (max(1, floor(length / shrink / side)) for length in (height, width))
    elif rows * columns < _FEWEST_TOKENS:
        grow = sqrt(_FEWEST_TOKENS * side**2 / (height * width))
        rows, columns = (ceil(length * grow / side) for length in (height, width))
    return rows * side, columns * side


def image_patches(image_HWC: Tensor, tower: TowerShape) -> Patches:
    """Of uint8 RGB 0..255 of any size, resized bicubically to `fitted_size`."""
    from PIL import Image

    assert image_HWC.dtype == torch.uint8 and image_HWC.ndim == 3 and image_HWC.shape[-1] == len(_MEAN), (
        f"{image_HWC.dtype} {tuple(image_HWC.shape)} is no uint8 [H, W, 3]"
    )
    height, width = fitted_size(image_HWC.shape[0], image_HWC.shape[1], tower)
    image = Image.fromarray(image_HWC.cpu().numpy()).resize((width, height), Image.Resampling.BICUBIC)
    resized_HWC = torch.from_numpy(numpy.array(image)).float() / 255
    scaled_HWC = (resized_HWC - torch.tensor(_MEAN)) / torch.tensor(_STD)
    values_ND = repeat(
        scaled_HWC,
        "(row down y) (column right x) color -> (row column down right) (color frame y x)",
        down=tower.merge_size,
        right=tower.merge_size,
        y=tower.patch_size,
        x=tower.patch_size,
        frame=tower.num_patch_frames,
    )
    return Patches(values_ND=values_ND, rows=height // tower.patch_size, columns=width // tower.patch_size)
