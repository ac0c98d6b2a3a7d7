from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import VisionShape
from cosmos_nemo.stages.pixtral_image import fitted_size, pixel_values

RELEASED = VisionShape()


def picture(height: int, width: int) -> Tensor:
    """Smooth enough that resizing is no lottery, with noise that shows another filter."""
    draw = numpy.random.RandomState(height * 10_000 + width)
    rows, columns = numpy.mgrid[0:height, 0:width]
    waves = numpy.stack([rows % 97, columns % 89, (rows + columns) % 113], axis=-1) * 1.5
    return torch.from_numpy((waves + draw.uniform(0, 60, waves.shape)).astype(numpy.uint8))


def transformers_image_processor() -> Any:
    """transformers' image processor that needs no torchvision; it has changed its name."""
    try:
        from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

        return PixtralImageProcessorPil()
    except ImportError:
        from transformers.models.pixtral.image_processing_pixtral import PixtralImageProcessor

        return PixtralImageProcessor()


@pytest.mark.parametrize(
    "size",
    [(704, 1280), (1280, 704), (48, 64), (17, 33), (1024, 1024), (1025, 300), (719, 1281), (16, 16), (1, 40)],
)
def test_the_pixels_are_those_of_transformers_image_processor(size: tuple[int, int]) -> None:
    image_HWC = picture(*size)
    expected = transformers_image_processor()(
        image_HWC.numpy(), return_tensors="np", input_data_format="channels_last"
    )
    found = pixel_values(image_HWC, RELEASED)
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(
        found, torch.from_numpy(expected["pixel_values"]).float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((704, 1280), (576, 1024)),  # 563.2 rows
        ((1024, 1024), (1024, 1024)),
        ((3000, 3000), (1024, 1024)),
        ((720, 1280), (576, 1024)),
        ((100, 50), (112, 64)),
        ((96, 160), (96, 160)),
        ((1, 1), (16, 16)),
        ((5000, 2), (1024, 16)),
        ((2, 5000), (16, 1024)),
    ],
)
def test_sides_are_scaled_down_to_the_largest_and_filled_up_to_whole_patches(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fitted_size(*size, RELEASED) == expected
    assert pixel_values(torch.zeros(*size, 3, dtype=torch.uint8), RELEASED).shape == (1, 3, *expected)


def test_no_size_goes_beyond_the_largest_side() -> None:
    draw = numpy.random.RandomState(0)
    for height, width in draw.randint(1, 6000, (2000, 2)).tolist():
        assert max(fitted_size(height, width, RELEASED)) <= 1024


def test_a_smaller_tower_has_its_own_sizes() -> None:
    small = VisionShape(patch_size=8, max_image_size=64)
    assert fitted_size(100, 200, small) == (32, 64)
    assert fitted_size(20, 20, small) == (24, 24)


def test_rows_stay_rows_and_colors_keep_their_order() -> None:
    image_HWC = torch.zeros(32, 48, 3, dtype=torch.uint8)
    image_HWC[16:, :, 1] = 255
    means_CH = pixel_values(image_HWC, RELEASED)[0].mean(-1)
    assert means_CH[1, -1] > means_CH[1, 0] + 3 and means_CH[0, -1] == means_CH[0, 0]


def test_the_image_itself_is_not_changed() -> None:
    image_HWC = picture(20, 20)
    before = image_HWC.clone()
    pixel_values(image_HWC, RELEASED)
    assert torch.equal(image_HWC, before)


@pytest.mark.parametrize(
    "image", [torch.zeros(8, 8, 3), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8).byte()]
)
def test_what_is_no_rgb_image_of_bytes_is_refused(image: Tensor) -> None:
    with pytest.raises(AssertionError, match="is no uint8"):
        pixel_values(image, RELEASED)
