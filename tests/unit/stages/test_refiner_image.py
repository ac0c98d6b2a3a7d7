from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from cosmos_nemo.checkpoint.refiner_names import TowerShape
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.refiner_image import fitted_size, image_patches
from tests.unit.stages.test_pixtral_image import picture

RELEASED = TowerShape(
    num_layers=32,
    hidden_size=1280,
    num_heads=16,
    ffn_hidden_size=3420,
    num_colors=3,
    patch_size=14,
    merge_size=2,
    num_patch_frames=2,
)
FEWEST, MOST = 256 * 28 * 28, 1280 * 28 * 28


def transformers_image_processor() -> Any:
    """transformers' image processor that needs no torchvision; it has changed its name."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        return Qwen2VLImageProcessorPil(min_pixels=FEWEST, max_pixels=MOST)
    except ImportError:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor(min_pixels=FEWEST, max_pixels=MOST)


@pytest.mark.parametrize(
    "size",
    [(704, 1280), (1280, 704), (480, 832), (41, 70), (1, 199), (600, 3), (1080, 1920), (448, 448), (15, 13)],
)
def test_the_patches_are_those_of_transformers_image_processor(size: tuple[int, int]) -> None:
    image_HWC = picture(*size)
    expected = transformers_image_processor()(
        image_HWC.numpy(), return_tensors="np", input_data_format="channels_last"
    )
    found = image_patches(image_HWC, RELEASED)
    assert expected["image_grid_thw"].tolist() == [[1, found.rows, found.columns]]
    assert found.values_ND.dtype == torch.float32 and found.values_ND.is_contiguous()
    torch.testing.assert_close(
        found.values_ND, torch.from_numpy(expected["pixel_values"]).float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((704, 1280), (700, 1288)),
        ((720, 1280), (728, 1288)),
        ((448, 448), (448, 448)),
        ((1, 1), (448, 448)),
        ((10_000, 10_000), (980, 980)),
        ((2160, 3840), (728, 1316)),
        ((1, 200), (56, 6356)),
    ],
)
def test_sides_are_whole_tokens_between_the_bounds(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(*size, RELEASED) == expected


def test_no_size_leaves_the_bounds() -> None:
    draw = numpy.random.RandomState(0)
    sides = numpy.exp(draw.uniform(0, numpy.log(20_000), (4000, 2))).astype(int).tolist()
    tried = 0
    for height, width in sides:
        if max(height, width) <= 200 * min(height, width):
            rows, columns = fitted_size(height, width, RELEASED)
            assert FEWEST <= rows * columns <= MOST and rows % 28 == columns % 28 == 0, (height, width)
            tried += 1
    assert tried > 3000


@pytest.mark.parametrize("size", [(1, 201), (4021, 20)])
def test_an_image_that_is_nearly_a_line_is_an_error_of_this_image(size: tuple[int, int]) -> None:
    with pytest.raises(ItemError, match=rf"{size[1]}x{size[0]} pixels is more than 200 times.*Crop it"):
        fitted_size(*size, RELEASED)


def test_a_tower_with_other_patches_has_other_sizes_and_as_many_tokens() -> None:
    small = replace(RELEASED, patch_size=2)
    assert fitted_size(64, 64, small) == (64, 64)
    assert fitted_size(1000, 1000, small) == (140, 140)
    assert image_patches(picture(8, 8), small).values_ND.shape == (1024, 3 * 2 * 2 * 2)


def test_patches_of_one_token_stand_together_and_each_holds_the_image_twice() -> None:
    tower = replace(RELEASED, patch_size=1)
    image_HWC = torch.zeros(32, 32, 3, dtype=torch.uint8)
    image_HWC[:2, 2:4, 1] = 255  # the second token of the first row
    found = image_patches(image_HWC, tower)
    values = found.values_ND.unflatten(1, (3, 2))
    assert torch.equal(values[..., 0], values[..., 1])
    green = (values[:, 1, 0] > 0).nonzero().flatten().tolist()
    assert green == [4, 5, 6, 7] and (found.rows, found.columns) == (32, 32)


def test_the_image_itself_is_not_changed_and_may_lie_in_any_order() -> None:
    image_HWC = picture(20, 30).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    before = image_HWC.clone()
    found = image_patches(image_HWC, RELEASED)
    assert torch.equal(image_HWC, before)
    assert torch.equal(found.values_ND, image_patches(before.contiguous(), RELEASED).values_ND)


@pytest.mark.parametrize(
    "image", [torch.zeros(8, 8, 3), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8).byte()]
)
def test_what_is_no_rgb_image_of_bytes_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match="is no uint8"):
        image_patches(image, RELEASED)
