import pytest
import torch

from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.pipelines.text2world import Text2World
from cosmos_nemo.request import Text2WorldRequest
from tests.fakes import CPU, RecordedDenoise, RecordedStage, RecordedTextEncoder, RecordedTokenizer

REQUEST = Text2WorldRequest(prompt="a robot", negative_prompt="poor", fps=12)


def _pipeline(journal: list[str], *, fails: str = "") -> Text2World:
    return Text2World(
        text_encoder=RecordedTextEncoder(journal, fails=fails == "text_encoder"),  # type: ignore[arg-type]
        denoise=RecordedDenoise(journal, fails=fails == "denoise"),  # type: ignore[arg-type]
        tokenizer=RecordedTokenizer(journal, fails=fails == "tokenizer"),  # type: ignore[arg-type]
        world=start_alone(CPU).world,
    )


def _visits(stage: str, *events: str) -> list[str]:
    return [f"{stage}.{event}" for event in events]


def test_each_stage_is_left_before_the_next_is_entered() -> None:
    journal: list[str] = []
    _pipeline(journal)(REQUEST)
    once = ("enter", "build", "call", "exit")
    assert journal == [
        *_visits("text_encoder", *once),
        *_visits("denoise", *once),
        *_visits("tokenizer", *once),
    ]


def test_a_second_request_builds_nothing_again() -> None:
    journal: list[str] = []
    pipeline = _pipeline(journal)
    pipeline(REQUEST)
    journal.clear()
    pipeline(REQUEST)
    assert [event for event in journal if event.endswith(".build")] == []


@pytest.mark.parametrize("stage", ["text_encoder", "denoise", "tokenizer"])
def test_a_stage_that_raises_is_left_and_parked_and_the_next_is_not_entered(stage: str) -> None:
    journal: list[str] = []
    pipeline = _pipeline(journal, fails=stage)
    with pytest.raises(RuntimeError, match=f"{stage} fails"):
        pipeline(REQUEST)
    assert journal[-1] == f"{stage}.exit"
    assert not any(one.holds_weights for one in pipeline.stages if isinstance(one, RecordedStage))


def test_the_subject_is_put_before_the_prompt_and_into_the_video() -> None:
    pipeline = _pipeline([])
    video = pipeline(Text2WorldRequest(prompt="It cooks.", negative_prompt="poor", subject_name="teal robot"))
    assert video.prompt == "A video of sks teal robot. It cooks."
    assert pipeline.text_encoder.prompts == [[video.prompt, "poor"]]  # type: ignore[attr-defined]


def test_prompt_and_negative_prompt_reach_the_network_in_their_places() -> None:
    pipeline = _pipeline([])
    pipeline(REQUEST)
    ((request, prompt_BLD, negative_BLD),) = pipeline.denoise.given  # type: ignore[attr-defined]
    assert request is REQUEST
    assert torch.equal(prompt_BLD, torch.full((1, 3, 4), 7.0))
    assert torch.equal(negative_BLD, torch.full((1, 3, 4), 4.0))


def test_an_empty_negative_prompt_is_zeros_and_is_not_encoded() -> None:
    pipeline = _pipeline([])
    pipeline(Text2WorldRequest(prompt="a robot", negative_prompt=""))
    assert pipeline.text_encoder.prompts == [["a robot"]]  # type: ignore[attr-defined]
    assert not pipeline.denoise.given[0][2].any()  # type: ignore[attr-defined]


def test_the_video_holds_the_decoded_frames_and_steps_are_told() -> None:
    steps: list[tuple[int, int]] = []
    pipeline = _pipeline([])
    video = pipeline(REQUEST, on_step=lambda step, total: steps.append((step, total)))
    assert video.fps == 12
    assert video.frames_THWC is not None and video.frames_THWC.shape == (9, 8, 8, 3)
    assert torch.equal(pipeline.tokenizer.latents[0], torch.ones(1, 16, 2, 1, 1))  # type: ignore[attr-defined]
    assert steps == [(1, 2), (2, 2)]
