"""What goes into the network and comes out, chunk by chunk, with recorded stages in place of models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.pipelines.video2world import Chunk, Video2World, chunks_of
from cosmos_nemo.request import Video2WorldRequest
from cosmos_nemo.stages.guardrail.outcome import Blocked
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.skip import Skip
from tests.fakes import FakeGroup, RecordedImageUpsampler, RecordedStage
from tests.unit.pipelines.test_text2world import KINDS

LIMITS = CARDS["Cosmos-1.0-Diffusion-7B-Text2World"].video


class Made:
    """A pipeline of recorded stages."""

    def __init__(self, *, off: tuple[str, ...] = (), **options: Any) -> None:
        options = {"denoise": {"num_latent_frames": 3}, **options}
        self.journal: list[str] = []
        kinds = {**KINDS, "upsampler": RecordedImageUpsampler}
        self.by_name: dict[str, Any] = {
            name: kind(self.journal, **options.get(name, {})) for name, kind in kinds.items()
        }
        one: Any = FakeGroup(1, 0)
        stages = {name: Skip() if name in off else stage for name, stage in self.by_name.items()}
        self.pipeline = Video2World(**stages, ranks=one)

    def __getattr__(self, name: str) -> Any:
        return self.by_name[name]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve frames of 16 x 24 pixels, each of its own brightness 10, 20 ... 120."""
    path = tmp_path / "clip.npy"
    levels = numpy.arange(10, 130, 10, dtype=numpy.uint8)
    numpy.save(path, numpy.broadcast_to(levels[:, None, None, None], (12, 16, 24, 3)))
    return path


def request_for(clip: Path, **changes: Any) -> Video2WorldRequest:
    base = Video2WorldRequest(
        prompt="go on", negative_prompt="bad", visual_input=clip, height=8, width=8, num_frames=17, seed=5
    )
    return replace(base, **changes)


def test_one_chunk_is_as_long_as_the_video_and_goes_on_from_the_input() -> None:
    request = request_for(Path("x"), num_frames=121, num_input_frames=9)
    assert chunks_of(request, LIMITS) == [Chunk(121, 9, 0.001, 5, is_first=True)]
    assert chunks_of(replace(request, num_frames=33), LIMITS) == [Chunk(33, 9, 0.001, 5, is_first=True)]


def test_later_chunks_overlap_and_see_their_beginning_under_more_noise() -> None:
    chunks = chunks_of(request_for(Path("x"), num_frames=121 + 3 * 112, seed=2**32 - 2), LIMITS)
    assert [chunk.num_given for chunk in chunks] == [1, 9, 9, 9]
    assert [chunk.noise_level for chunk in chunks] == [0.001, 0.2, 0.5, 0.5]
    assert [chunk.seed for chunk in chunks] == [2**32 - 2, 2**32 - 1, 0, 1]
    assert [chunk.is_first for chunk in chunks] == [True, False, False, False]
    assert len(chunks_of(request_for(Path("x"), num_frames=121 + 3 * 112 + 8), LIMITS)) == 5
    assert len(chunks_of(request_for(Path("x"), num_frames=241, num_overlap_frames=1), LIMITS)) == 2


@pytest.mark.parametrize(("given", "levels", "places"), [(1, [120], (0,)), (9, [40, 120], (0, 1))])
def test_the_last_frames_of_the_input_are_what_the_network_is_given(
    clip: Path, given: int, levels: list[int], places: tuple[int, ...]
) -> None:
    made = Made()
    video = made.pipeline(request_for(clip, num_input_frames=given))
    assert video is not None
    [(pixels, as_image)] = made.tokenizer.videos
    assert pixels.shape == (1, 3, given, 8, 8) and as_image is False
    ends = pixels[0, 0, :, 0, 0][[0, -1]]
    torch.testing.assert_close(ends, torch.tensor([levels[0] / 128 - 1, levels[-1] / 128 - 1]))
    [condition] = made.denoise.conditions
    assert condition.places == places and condition.noise_level == 0.001 and not condition.draws_noise
    assert torch.equal(condition.latent_BCTHW, pixels.mean().expand(1, 16, len(places), 1, 1))


def test_a_long_video_is_made_of_chunks_joined_without_their_overlap_and_cut_to_length(clip: Path) -> None:
    made = Made(denoise={"num_latent_frames": 16})
    calls: list[tuple[str, int, int]] = []
    video = made.pipeline(
        request_for(clip, num_frames=241), on_progress=lambda name: lambda *step: calls.append((name, *step))
    )
    assert video is not None
    asked = [request for request, *_ in made.denoise.given]
    assert [(one.num_frames, one.seed) for one in asked] == [(121, 5), (121, 6), (121, 7)]
    # 7, 14 and 21 are what the recorded tokenizer makes of the first, the second and the third latent.
    assert video.frames_THWC[:, 0, 0, 0].tolist() == [7] * 121 + [14] * 112 + [21] * 8
    shown = [videos for videos, _ in made.tokenizer.videos]
    assert [len(pixels[0, 0]) for pixels in shown] == [1, 9, 9]
    torch.testing.assert_close(shown[1], torch.full_like(shown[1], 7 / 127.5 - 1))
    assert [one.noise_level for one in made.denoise.conditions] == [0.001, 0.2, 0.5]
    assert calls == [(f"denoise chunk {number} of 3", step, 2) for number in (1, 2, 3) for step in (1, 2)]


def test_the_upsampler_describes_the_last_frame_and_the_guard_judges_what_it_says(clip: Path) -> None:
    made = Made()
    video = made.pipeline(request_for(clip, num_input_frames=9, subject_name="robot"))
    assert video is not None
    said = "A video of sks robot. a scene of brightness 120"
    assert video.prompt == said and made.text_guard.texts == [said]
    assert made.text_encoder.prompts == [[said, "bad"]]


def test_without_the_upsampler_the_prompt_is_judged_and_used(clip: Path) -> None:
    made = Made(off=("upsampler",))
    video = made.pipeline(request_for(clip))
    assert video is not None and video.prompt == "go on" == made.text_guard.texts[0]
    with pytest.raises(Blocked):
        Made(off=("upsampler",), text_guard={"blocks": "go"}).pipeline(request_for(clip))


@pytest.mark.parametrize("keeps", [False, True])
def test_the_video_has_its_own_size_or_by_request_the_inputs(clip: Path, keeps: bool) -> None:
    video = Made(denoise={"num_latent_frames": 3}).pipeline(request_for(clip, keeps_input_size=keeps))
    assert video is not None
    assert video.frames_THWC.shape == ((17, 16, 24, 3) if keeps else (17, 8, 8, 3))
    assert (video.frames_THWC == 7).all()


def test_stages_are_left_before_the_next_is_entered(clip: Path) -> None:
    made = Made()
    made.pipeline(request_for(clip))
    entered = [event.split(".")[0] for event in made.journal if event.endswith(".enter")]
    assert entered == [
        *("upsampler", "text_guard", "text_encoder"),
        *("tokenizer", "denoise", "tokenizer", "video_guard"),
    ]
    depth = 0
    for event in made.journal:
        depth += event.endswith(".enter") - event.endswith(".exit")
        assert depth <= 1


@pytest.mark.parametrize("fails", ["upsampler", "text_encoder", "tokenizer", "denoise", "video_guard"])
def test_whatever_fails_nothing_stays_resident(clip: Path, fails: str) -> None:
    made = Made(**{fails: {"fails": True}})
    with pytest.raises(RuntimeError, match=f"{fails} fails"):
        made.pipeline(request_for(clip))
    stages: list[RecordedStage] = list(made.by_name.values())
    assert not any(stage.holds_weights for stage in stages)


def test_an_input_that_is_too_short_is_named(clip: Path) -> None:
    numpy.save(clip, numpy.zeros((3, 16, 24, 3), numpy.uint8))
    with pytest.raises(ItemError, match="has 3 frames"):
        Made().pipeline(request_for(clip, num_input_frames=9))


def test_a_chunk_goes_on_from_the_end_of_the_one_before_and_each_frame_is_shown_once(clip: Path) -> None:
    made = Made(denoise={"num_latent_frames": 16}, tokenizer={"numbers_frames": True})
    video = made.pipeline(request_for(clip, num_frames=249))
    assert video is not None
    shown = [tuple(frame[0, 0, :2].tolist()) for frame in video.frames_THWC]
    chunks = [[(1, t) for t in range(121)], [(2, t) for t in range(9, 121)], [(3, t) for t in range(9, 25)]]
    assert shown == [frame for chunk in chunks for frame in chunk]
    for (pixels, _), number in zip(made.tokenizer.videos[1:], (1, 2), strict=True):
        levels = ((pixels[0, :2, :, 0, 0] + 1) * 127.5).round().int()
        assert levels[0].tolist() == [number] * 9 and levels[1].tolist() == list(range(112, 121))


def test_chunks_have_the_length_that_the_weights_were_trained_on() -> None:
    limits = replace(LIMITS, num_frames=33, max_frames=49)
    assert [c.num_frames for c in chunks_of(request_for(Path("x"), num_frames=49), limits)] == [49]
    assert [c.num_frames for c in chunks_of(request_for(Path("x"), num_frames=57), limits)] == [33, 33]
