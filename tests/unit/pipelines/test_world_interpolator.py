"""Pairs of given frames become clips, and clips a video, with recorded stages in place of models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from cosmos_nemo.pipelines.world_interpolator import WorldInterpolator
from cosmos_nemo.request import InterpolationRequest
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.skip import Skip
from tests.fakes import FakeGroup, RecordedImageUpsampler
from tests.unit.pipelines.test_text2world import KINDS

LEVELS = [10, 20, 30, 40, 50]


class Made:
    def __init__(self, *, off: tuple[str, ...] = (), **options: Any) -> None:
        kinds = {**KINDS, "upsampler": RecordedImageUpsampler}
        options = {"denoise": {"num_latent_frames": 3}, **options}
        self.journal: list[str] = []
        self.by_name: dict[str, Any] = {
            name: kind(self.journal, **options.get(name, {})) for name, kind in kinds.items()
        }
        one: Any = FakeGroup(1, 0)
        stages = {name: Skip() if name in off else stage for name, stage in self.by_name.items()}
        self.pipeline = WorldInterpolator(**stages, ranks=one)

    def __getattr__(self, name: str) -> Any:
        return self.by_name[name]


@pytest.fixture
def request_of_five(tmp_path: Path) -> InterpolationRequest:
    """For five frames of brightness 10, 20, 30, 40 and 50."""
    path = tmp_path / "clip.npy"
    levels = numpy.array(LEVELS, dtype=numpy.uint8)
    numpy.save(path, numpy.broadcast_to(levels[:, None, None, None], (5, 16, 24, 3)))
    return InterpolationRequest(
        prompt="go", negative_prompt="bad", visual_input=path, height=8, width=8, num_frames=10
    )


def level(pixels: torch.Tensor) -> int:
    torch.testing.assert_close(pixels, pixels.mean().expand_as(pixels))
    return round((pixels.mean().item() + 1) * 128)


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({}, [(10, 20), (20, 30), (30, 40), (40, 50)]),
        ({"frame_stride": 2}, [(10, 30), (30, 50)]),
        ({"frame_index_start": 1, "num_frame_pairs": 2}, [(20, 30), (30, 40)]),
        ({"frame_index_start": 1, "frame_stride": 3}, [(20, 50)]),
    ],
)
def test_each_pair_is_given_its_first_frame_as_a_videos_and_its_last_as_an_image(
    request_of_five: InterpolationRequest, changes: dict[str, Any], pairs: list[tuple[int, int]]
) -> None:
    made = Made()
    video = made.pipeline(replace(request_of_five, **changes))
    assert video is not None and len(video.frames_THWC) == 10 + 9 * (len(pairs) - 1)
    videos = made.tokenizer.videos
    assert [as_image for _, as_image in videos] == [False, True] * len(pairs)
    assert all(pixels.shape == (1, 3, 1, 8, 8) for pixels, _ in videos)
    shown = [level(pixels) for pixels, _ in videos]
    assert list(zip(shown[::2], shown[1::2], strict=True)) == pairs
    for condition, (first, last) in zip(made.denoise.conditions, pairs, strict=True):
        assert condition.places == (0, -1) and not condition.draws_noise
        given = condition.latent_BCTHW[0, 0, :, 0, 0]
        torch.testing.assert_close(given, torch.tensor([first / 128 - 1, last / 128 - 1]))


def test_clips_are_joined_where_they_meet(request_of_five: InterpolationRequest) -> None:
    made, names = Made(), list[str]()
    video = made.pipeline(request_of_five, on_progress=names.append)
    assert video is not None and names == [f"denoise clip {number} of 4" for number in (1, 2, 3, 4)]
    # 7, 14, 21 and 28 are what the recorded tokenizer makes of the clips one after the other.
    wanted = [7] * 10 + [14] * 9 + [21] * 9 + [28] * 9
    assert video.frames_THWC[:, 0, 0, 0].tolist() == wanted
    frames = [latent.shape[2] for latent in made.tokenizer.latents]
    assert frames == [2, 1] * 4, "a clip is a video of two latent frames and an image"


def test_every_pair_starts_from_the_same_noise(request_of_five: InterpolationRequest) -> None:
    made = Made()
    made.pipeline(replace(request_of_five, seed=11, draws_noise=True))
    assert {request.seed for request, *_ in made.denoise.given} == {11}
    assert all(condition.draws_noise for condition in made.denoise.conditions)


def test_the_last_frame_of_the_video_is_described(request_of_five: InterpolationRequest) -> None:
    made = Made()
    video = made.pipeline(replace(request_of_five, num_frame_pairs=1))
    assert video is not None and video.prompt == "a scene of brightness 50"
    plain = Made(off=("upsampler",)).pipeline(request_of_five)
    assert plain is not None and plain.prompt == "go"


def test_each_model_is_entered_once_for_all_pairs(request_of_five: InterpolationRequest) -> None:
    made = Made()
    made.pipeline(request_of_five)
    entered = [event.split(".")[0] for event in made.journal if event.endswith(".enter")]
    assert entered == [
        *("upsampler", "text_guard", "text_encoder"),
        *("tokenizer", "denoise", "tokenizer", "video_guard"),
    ]


def test_a_video_without_enough_frames_is_refused(request_of_five: InterpolationRequest) -> None:
    with pytest.raises(ItemError, match="has 5 frame"):
        Made().pipeline(replace(request_of_five, num_frame_pairs=5))


def test_where_clips_meet_the_frame_of_the_earlier_one_is_shown(
    request_of_five: InterpolationRequest,
) -> None:
    made = Made(tokenizer={"numbers_frames": True})
    video = made.pipeline(replace(request_of_five, num_frame_pairs=2))
    assert video is not None
    # Each clip is decoded twice: nine frames as a video, the last as an image.
    wanted = [(1, t) for t in range(9)] + [(2, 0)] + [(3, t) for t in range(1, 9)] + [(4, 0)]
    assert [tuple(frame[0, 0, :2].tolist()) for frame in video.frames_THWC] == wanted


def test_without_the_upsampler_the_video_is_not_read_to_its_end(
    request_of_five: InterpolationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmos_nemo.pipelines.world_interpolator.read_last_frames", None)
    assert Made(off=("upsampler",)).pipeline(request_of_five) is not None
