import pytest
import torch

from cosmos_nemo.training.nano.tokenizer_clips import (
    draw_varied_clips,
    measure_psnr,
    object_mask,
    to_video,
)
from cosmos_nemo.training.nano.world import TRAINED, draw_clips, draw_subject_clips

CPU = torch.device("cpu")


class Darker:
    """Gives back videos that are darker by 0.02 of black to white."""

    def encode(self, video: torch.Tensor, /) -> torch.Tensor:
        return video - 0.04

    def decode(self, latent: torch.Tensor, /) -> torch.Tensor:
        return latent


def test_the_ratio_is_that_of_the_mean_error_and_takes_objects_apart() -> None:
    clip = draw_clips(TRAINED[:1], seed=0, device=CPU)
    video = to_video(clip)
    error = (((video - 0.04).clamp(-1, 1) - video) / 2).square()
    psnr = measure_psnr(Darker(), clip)
    assert psnr.frame == pytest.approx(-10 * float(error.mean().log10()), abs=1e-3)
    inside = error.mean(1, keepdim=True)[object_mask(video) > 0]
    assert psnr.object == pytest.approx(-10 * float(inside.mean().log10()), abs=1e-3)


def test_varied_clips_have_colours_that_the_world_has_not() -> None:
    video = draw_varied_clips(4, seed=0, device=CPU)
    assert video.shape == (4, 3, 33, 128, 128) and video.abs().max() <= 1
    assert torch.equal(video, draw_varied_clips(4, seed=0, device=CPU))
    corners = video[:, :, 0, ::127, ::127].flatten(2)
    assert (corners.amax(2) - corners.amin(2)).mean() > 0.1
    assert not torch.equal(video[0], video[1])


def test_the_mask_covers_the_robot_and_not_the_ground() -> None:
    clip = draw_subject_clips([("stays still", "gray")], seed=0, device=CPU)
    mask = object_mask(to_video(clip))[0, 0]
    differs = (clip[0].int() - clip[0, 0, 0, 0].int()).abs().amax(-1) > 20
    assert bool((mask[differs] == 1).all())
    assert float(mask.mean()) < 2.5 * float(differs.float().mean())
