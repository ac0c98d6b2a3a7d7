"""An image as Pixtral's vision tower reads it (transformers' PixtralImageProcessor, without torchvision).

H W are rows and columns in pixels, C colors.
"""

import numpy
import torch
from torch import Tensor

from cosmos_nemo.catalog import VisionShape

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the colors red, green and blue between 0 and 1, over the images that the tower was trained on."""


def fitted_size(height: int, width: int, vision: VisionShape) -> tuple[int, int]:
    """Rows and columns of whole patches, at least one: scaled down to the largest side allowed, never up.

    Rounding up to whole patches changes the proportions by less than a patch.
    """
    ratio = max(1.0, max(height, width) / vision.max_image_size)
    patch = vision.patch_size
    rows, columns = (max(1, -(-int(side / ratio) // patch)) for side in (height, width))
    return rows * patch, columns * patch


def pixel_values(image_HWC: Tensor, vision: VisionShape) -> Tensor:
    """float32 [1, C, H, W], resized bicubically to `fitted_size`, of uint8 RGB 0..255 of any size."""
    from PIL import Image

    assert image_HWC.dtype == torch.uint8 and image_HWC.ndim == 3 and image_HWC.shape[-1] == len(_MEAN), (
        f"{image_HWC.dtype} {tuple(image_HWC.shape)} is no uint8 [H, W, 3]"
    )
    height, width = fitted_size(image_HWC.shape[0], image_HWC.shape[1], vision)
    image = Image.fromarray(image_HWC.cpu().numpy()).resize((width, height), Image.Resampling.BICUBIC)
    resized_HWC = torch.from_numpy(numpy.array(image)).float() / 255
    scaled_HWC = (resized_HWC - torch.tensor(_MEAN)) / torch.tensor(_STD)
    return scaled_HWC.permute(2, 0, 1)[None].contiguous()
