from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_nemo.pipelines.text2world import Text2World
from cosmos_nemo.request import Text2WorldRequest
from tests.fakes import FakeGroup, RecordedDenoise, RecordedStage, RecordedTextEncoder, RecordedTokenizer

REQUEST = Text2WorldRequest(prompt="a cat", negative_prompt="bad", fps=12, video_path=Path("a.mp4"))
STAGES = ("text_encoder", "denoise", "tokenizer")


class Made:
    """A pipeline of recorded stages; `journal` holds what they did."""

    def __init__(self, *, offload: bool = True, fails: str = "") -> None:
        self.journal: list[str] = []
        kinds = (RecordedTextEncoder, RecordedDenoise, RecordedTokenizer)
        self.text_encoder, self.denoise, self.tokenizer = (
            kind(self.journal, offload=offload, fails=name == fails)
            for kind, name in zip(kinds, STAGES, strict=True)
        )
        world: Any = FakeGroup(1, 0)
        stages: dict[str, Any] = {name: getattr(self, name) for name in STAGES}
        self.pipeline = Text2World(**stages, world=world)

    @property
    def stages(self) -> tuple[RecordedStage, ...]:
        return self.text_encoder, self.denoise, self.tokenizer


def events(*, build: bool) -> list[str]:
    what = ("enter", "build", "call", "exit") if build else ("enter", "call", "exit")
    return [f"{stage}.{event}" for stage in STAGES for event in what]


@pytest.mark.parametrize("offload", [True, False])
def test_each_stage_is_left_before_the_next_is_entered_and_built_for_the_first_video_only(
    offload: bool,
) -> None:
    made = Made(offload=offload)
    made.pipeline(REQUEST)
    assert made.journal == events(build=True)
    made.journal.clear()
    made.pipeline(REQUEST)
    assert made.journal == events(build=False)
    assert [stage.holds_weights for stage in made.stages] == [not offload] * 3


def test_with_everything_offloaded_one_model_is_resident_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    resident: list[list[str]] = []
    noted = RecordedStage.called

    def called(stage: RecordedStage) -> None:
        resident.append([one.name for one in made.stages if one.holds_weights])
        noted(stage)

    monkeypatch.setattr(RecordedStage, "called", called)
    for _ in range(2):
        made.pipeline(REQUEST)
    assert resident == [["text_encoder"], ["denoise"], ["tokenizer"]] * 2


@pytest.mark.parametrize("fails", STAGES)
def test_a_stage_that_raises_is_left_and_parked_and_the_next_is_never_entered(fails: str) -> None:
    made = Made(fails=fails)
    with pytest.raises(RuntimeError, match=f"{fails} fails"):
        made.pipeline(REQUEST)
    last = STAGES.index(fails)
    assert made.journal == events(build=True)[: 4 * last + 4]
    assert not any(stage.holds_weights for stage in made.stages)


def test_both_prompts_are_encoded_in_one_call_and_reach_the_network_apart() -> None:
    made = Made()
    made.pipeline(REQUEST)
    assert made.text_encoder.prompts == [["a cat", "bad"]]
    ((request, prompt, negative),) = made.denoise.given
    assert request is REQUEST
    assert torch.equal(prompt, torch.full((1, 3, 4), 5.0))
    assert torch.equal(negative, torch.full((1, 3, 4), 3.0))


def test_an_empty_negative_prompt_is_zeros_and_is_not_encoded() -> None:
    made = Made()
    made.pipeline(Text2WorldRequest(prompt="a cat", negative_prompt=""))
    assert made.text_encoder.prompts == [["a cat"]]
    _, prompt, negative = made.denoise.given[0]
    assert torch.equal(prompt, torch.full((1, 3, 4), 5.0))
    assert torch.equal(negative, torch.zeros(1, 3, 4))


def test_a_subject_comes_before_the_prompt_and_not_before_the_negative_one() -> None:
    made = Made()
    video = made.pipeline(Text2WorldRequest(prompt="a cat", negative_prompt="bad", subject_name="tom"))
    assert made.text_encoder.prompts == [["A video of sks tom. a cat", "bad"]]
    assert video.prompt == "A video of sks tom. a cat"


def test_the_video_holds_the_frames_the_rate_and_the_prompt_used() -> None:
    made = Made()
    video = made.pipeline(REQUEST)
    assert torch.equal(made.tokenizer.latents[0], torch.ones(1, 16, 2, 1, 1))
    assert video.frames_THWC is not None
    assert torch.equal(video.frames_THWC, torch.full((9, 8, 8, 3), 7, dtype=torch.uint8))
    assert (video.fps, video.prompt) == (12, "a cat")


def test_progress_is_that_of_the_network() -> None:
    steps: list[tuple[int, int]] = []
    Made().pipeline(REQUEST, on_step=lambda step, total: steps.append((step, total)))
    assert steps == [(1, 2), (2, 2)]


def test_the_stages_are_listed_in_the_order_they_run() -> None:
    made = Made()
    assert made.pipeline.stages == made.stages


def test_only_rank_0_decodes_and_holds_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_nemo.parallel import rank_zero

    # What another rank of two sees: rank 0's broadcast says that all went well.
    monkeypatch.setattr(rank_zero, "_broadcast_object", lambda value, group: (None, None))
    made = Made()
    world: Any = FakeGroup(2, 1)
    made.pipeline.world = world
    video = made.pipeline(REQUEST)
    assert video.frames_THWC is None
    assert video.prompt == "a cat"
    assert made.journal == events(build=True)[:8]
