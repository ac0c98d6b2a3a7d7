import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_nemo.models.common.volumes import (
    for_convolutions,
    has_channels_last,
    in_memory_as,
    interleaved,
    joined,
    repeated,
)

FORMS = (torch.contiguous_format, torch.channels_last_3d)


def clip(form: torch.memory_format, *, batch: int = 2, frames: int = 3) -> Tensor:
    return torch.randn(batch, 4, frames, 5, 6).contiguous(memory_format=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("times", [{"frames": 2}, {"sides": 2}, {"frames": 3, "sides": 2}, {}])
@pytest.mark.parametrize("length", [1, 3])
def test_frames_and_pixels_are_repeated_in_place(
    form: torch.memory_format, times: dict[str, int], length: int
) -> None:
    x = clip(form, frames=length)
    frames, sides = times.get("frames", 1), times.get("sides", 1)
    exact = x.repeat_interleave(frames, 2).repeat_interleave(sides, 3).repeat_interleave(sides, 4)
    found = repeated(x, **times)
    assert torch.equal(found, exact)
    assert found.is_contiguous(memory_format=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", FORMS)
def test_clips_are_joined_in_the_form_of_the_second(
    form: torch.memory_format, before: torch.memory_format
) -> None:
    first, second = clip(before, frames=2), clip(form)
    found = joined(first, second)
    assert torch.equal(found, torch.cat([first, second], dim=2))
    assert found.is_contiguous(memory_format=form)
    assert torch.equal(joined(first[:, :, :1].expand(-1, -1, 2, -1, -1), second)[:, :, 1], first[:, :, 0])


def test_nothing_can_be_joined_and_repeated() -> None:
    x = clip(torch.contiguous_format)
    assert torch.equal(joined(x[:, :, :0], x), x) and torch.equal(joined(x, x[:, :, :0]), x)
    assert repeated(x[:, :, :0], frames=2).shape == (2, 4, 0, 5, 6)


def test_a_cpu_keeps_pixels_together() -> None:
    x = clip(torch.contiguous_format)
    assert for_convolutions(x) is x and not has_channels_last(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frames", [1, 3])
def test_the_halves_of_a_frames_channels_become_two_frames(form: torch.memory_format, frames: int) -> None:
    x = clip(form, frames=frames)
    found = interleaved(x)
    assert torch.equal(found[:, :, 0::2], x[:, :2]) and torch.equal(found[:, :, 1::2], x[:, 2:])
    assert found.is_contiguous(memory_format=form)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_repeated_as_by_nearest_upsampling(dtype: torch.dtype) -> None:
    x = torch.randn(1, 5, 2, 3, 7).to(dtype)
    frames = x[0].transpose(0, 1)
    exact = F.interpolate(frames.float(), scale_factor=2.0, mode="nearest-exact").to(dtype)
    assert torch.equal(repeated(x, sides=2)[0].transpose(0, 1), exact)


@pytest.mark.parametrize("form", FORMS)
def test_one_clip_is_laid_out_as_another_to_convolutions_too(form: torch.memory_format) -> None:
    model = clip(form, batch=1)
    odd = torch.randn(30, 3, 4).unflatten(0, (1, 5, 6)).permute(0, 4, 3, 1, 2)
    for x in (odd, odd.contiguous(memory_format=torch.channels_last_3d), odd.contiguous()):
        found = in_memory_as(model, x)
        assert torch.equal(found, odd) and found.stride() == model.stride()
