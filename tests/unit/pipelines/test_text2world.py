from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_nemo.pipelines.text2world import Text2World
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.stages.guardrail.outcome import Blocked
from cosmos_nemo.stages.parked import Parked
from cosmos_nemo.stages.skip import Skip
from tests.fakes import (
    FakeGroup,
    RecordedDenoise,
    RecordedStage,
    RecordedTextEncoder,
    RecordedTextGuard,
    RecordedTokenizer,
    RecordedUpsampler,
    RecordedVideoGuard,
)
from tests.unit.stages.test_parked import FakeTransfer

REQUEST = Text2WorldRequest(prompt="a cat", negative_prompt="bad", fps=12, video_path=Path("a.mp4"))
STAGES = ("text_guard", "upsampler", "text_encoder", "denoise", "tokenizer", "video_guard")
USES = ("text_guard", "upsampler", "text_guard", "text_encoder", "denoise", "tokenizer", "video_guard")
KINDS: dict[str, Any] = {
    "text_guard": RecordedTextGuard,
    "upsampler": RecordedUpsampler,
    "text_encoder": RecordedTextEncoder,
    "denoise": RecordedDenoise,
    "tokenizer": RecordedTokenizer,
    "video_guard": RecordedVideoGuard,
}


class Made:
    """A pipeline of recorded stages; `journal` holds what they did."""

    def __init__(
        self, *, offload: bool = True, fails: str = "", off: tuple[str, ...] = (), **options: Any
    ) -> None:
        self.journal: list[str] = []
        self.by_name: dict[str, Any] = {
            name: kind(self.journal, offload=offload, fails=name == fails, **options.get(name, {}))
            for name, kind in KINDS.items()
        }
        self.text_encoder, self.denoise = self.by_name["text_encoder"], self.by_name["denoise"]
        self.tokenizer, self.text_guard = self.by_name["tokenizer"], self.by_name["text_guard"]
        one: Any = FakeGroup(1, 0)
        stages = {name: Skip() if name in off else stage for name, stage in self.by_name.items()}
        self.pipeline = Text2World(**stages, ranks=one)

    @property
    def stages(self) -> tuple[RecordedStage, ...]:
        return tuple(self.by_name.values())


PLAIN = ("text_guard", "upsampler", "video_guard")
"""What is off for a pipeline of text encoder, network and tokenizer alone."""
PREFETCHED = {"text_encoder": "denoise", "denoise": "tokenizer", "tokenizer": "video_guard"}
"""Stage -> the one that is brought back while it works."""


def events(uses: tuple[str, ...], *, build: bool, off: tuple[str, ...] = ()) -> list[str]:
    found, built = [], set[str]()
    for stage in uses:
        is_new = build and stage not in built
        built.add(stage)
        found += [f"{stage}.{event}" for event in ("enter", *["build"] * is_new)]
        if (following := PREFETCHED.get(stage)) is not None and following not in off:
            found.append(f"{following}.prefetch")
        found += [f"{stage}.{event}" for event in ("call", "exit")]
    return found


@pytest.mark.parametrize("offload", [True, False])
def test_each_stage_is_left_before_the_next_is_entered_and_built_for_the_first_video_only(
    offload: bool,
) -> None:
    made = Made(offload=offload)
    made.pipeline(REQUEST)
    assert made.journal == events(USES, build=True)
    made.journal.clear()
    made.pipeline(REQUEST)
    assert made.journal == events(USES, build=False)
    assert [stage.holds_weights for stage in made.stages] == [not offload] * 6


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
    assert resident == [[name] for name in USES] * 2


@pytest.mark.parametrize("fails", STAGES)
def test_a_stage_that_raises_is_left_and_parked_and_the_next_is_never_entered(fails: str) -> None:
    made = Made(fails=fails)
    with pytest.raises(RuntimeError, match=f"{fails} fails"):
        made.pipeline(REQUEST)
    assert made.journal == events(USES[: USES.index(fails) + 1], build=True)
    assert not any(stage.holds_weights for stage in made.stages)


@pytest.mark.parametrize(("works", "following"), PREFETCHED.items())
def test_what_was_prefetched_for_a_stage_that_raises_is_dropped(works: str, following: str) -> None:
    made = Made()
    made.by_name[following].parked = Parked(FakeTransfer())
    made.pipeline(REQUEST)
    arriving: list[bool] = []

    def fail() -> None:
        arriving.append(made.by_name[following].parked.is_arriving)
        raise KeyError("inside")

    made.by_name[works].called = fail
    with pytest.raises(KeyError, match="inside"):
        made.pipeline(REQUEST)
    assert arriving == [True]
    assert not made.by_name[following].parked.is_arriving


@pytest.mark.parametrize("following", PREFETCHED.values())
def test_a_prefetched_stage_is_copied_once(following: str) -> None:
    made, transfer = Made(), FakeTransfer()
    made.by_name[following].parked = Parked(transfer)
    for _ in range(2):
        made.pipeline(REQUEST)
    assert transfer.journal == ["host", "released", "start", "wait", "released"]


def test_what_is_turned_off_is_never_entered() -> None:
    made = Made(off=PLAIN)
    video = made.pipeline(REQUEST)
    assert made.journal == events(("text_encoder", "denoise", "tokenizer"), build=True, off=PLAIN)
    assert video is not None and video.prompt == "a cat"
    assert [stage.name for stage in made.pipeline.stages] == ["text_encoder", "denoise", "tokenizer"]


def test_prompt_and_what_became_of_it_are_judged() -> None:
    made = Made()
    video = made.pipeline(REQUEST)
    assert made.text_guard.texts == ["a cat", "a cat, seen at length"]
    assert video is not None and video.prompt == "a cat, seen at length"
    assert made.text_encoder.prompts == [["a cat, seen at length", "bad"]]


def test_a_prompt_that_stays_as_it_is_is_judged_once() -> None:
    made = Made(off=("upsampler",))
    made.pipeline(REQUEST)
    assert made.text_guard.texts == ["a cat"]


@pytest.mark.parametrize(("blocks", "uses"), [("cat", USES[:1]), ("length", USES[:3]), ("tom", USES[:3])])
def test_a_blocked_prompt_makes_nothing(blocks: str, uses: tuple[str, ...]) -> None:
    """The subject is judged too, which the released scripts put in front after the last judgement."""
    made = Made(text_guard={"blocks": blocks})
    with pytest.raises(Blocked, match="blocked by the text guard: it holds"):
        made.pipeline(Text2WorldRequest(prompt="a cat", subject_name="tom"))
    assert made.journal == events(uses, build=True)


def test_a_blocked_video_is_not_shown() -> None:
    made = Made(video_guard={"finds": "harm"})
    with pytest.raises(Blocked, match="frame 3 is harm"):
        made.pipeline(REQUEST)
    assert made.journal == events(USES, build=True)


@pytest.mark.parametrize(("finds", "value"), [("", 7), ("a face", 9)])
def test_the_video_is_what_the_guard_left_of_it_and_says_so(finds: str, value: int) -> None:
    video = Made(video_guard={"finds": finds}).pipeline(REQUEST)
    assert video is not None
    assert video.frames_THWC.unique().tolist() == [value]
    assert video.is_changed == (finds != "")


def test_both_prompts_are_encoded_in_one_call_and_reach_the_network_apart() -> None:
    made = Made(off=PLAIN)
    made.pipeline(REQUEST)
    assert made.text_encoder.prompts == [["a cat", "bad"]]
    ((request, prompt, negative),) = made.denoise.given
    assert request is REQUEST
    assert torch.equal(prompt, torch.full((1, 3, 4), 5.0))
    assert torch.equal(negative, torch.full((1, 3, 4), 3.0))


def test_an_empty_negative_prompt_is_zeros_and_is_not_encoded() -> None:
    made = Made(off=PLAIN)
    made.pipeline(Text2WorldRequest(prompt="a cat", negative_prompt=""))
    assert made.text_encoder.prompts == [["a cat"]]
    _, prompt, negative = made.denoise.given[0]
    assert torch.equal(prompt, torch.full((1, 3, 4), 5.0))
    assert torch.equal(negative, torch.zeros(1, 3, 4))


def test_a_subject_comes_before_the_prompt_and_not_before_the_negative_one() -> None:
    made = Made(off=PLAIN)
    video = made.pipeline(Text2WorldRequest(prompt="a cat", negative_prompt="bad", subject_name="tom"))
    assert video is not None
    assert made.text_encoder.prompts == [["A video of sks tom. a cat", "bad"]]
    assert video.prompt == "A video of sks tom. a cat"


def test_the_video_holds_the_frames_the_rate_and_the_prompt_used() -> None:
    made = Made(off=PLAIN)
    video = made.pipeline(REQUEST)
    assert torch.equal(made.tokenizer.latents[0], torch.ones(1, 16, 2, 1, 1))
    assert video is not None
    assert torch.equal(video.frames_THWC, torch.full((9, 8, 8, 3), 7, dtype=torch.uint8))
    assert (video.fps, video.prompt) == (12, "a cat")


def test_progress_is_that_of_the_network() -> None:
    steps: list[tuple[int, int]] = []
    Made().pipeline(REQUEST, on_progress=lambda name: lambda step, total: steps.append((step, total)))
    assert steps == [(1, 2), (2, 2)]


def test_the_stages_are_listed_in_the_order_they_run() -> None:
    made = Made()
    assert made.pipeline.stages == made.stages


def test_only_rank_0_prepares_the_prompt_decodes_and_holds_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_nemo.parallel import rank_zero

    # What another rank of two sees: the prompt of rank 0, then twice that all went well.
    told = iter([("a cat, of rank 0", None), (None, None), (None, None)])
    monkeypatch.setattr(rank_zero, "_broadcast_object", lambda value, group: next(told))
    made = Made()
    ranks: Any = FakeGroup(2, 1)
    made.pipeline.ranks = ranks
    assert made.pipeline(REQUEST) is None
    assert made.text_encoder.prompts == [["a cat, of rank 0", "bad"]]
    assert made.journal == events(("text_encoder", "denoise"), build=True)
