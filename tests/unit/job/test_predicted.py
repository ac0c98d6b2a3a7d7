"""What is said of a stage that the GPU had no memory for."""

from dataclasses import replace

import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.job import Job
from cosmos_nemo.job.predicted import out_of_memory, prediction_of
from cosmos_nemo.memory import GIB
from cosmos_nemo.request import OFFLOADABLE, Setup
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.diffusion_decoder import DiffusionDecoder
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.stages.guardrail.text_guard import TextGuard
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.prompt_refiner import PromptRefiner
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.token_generation import TokenGeneration
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from tests.unit.job.test_describe import CARD, JOB


def offloading(*names: str) -> Setup:
    return Setup(model=CARD.name, upsamples=True, offload=frozenset(names))


def gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"


def told(job: Job, stage: str) -> str:
    said = out_of_memory(job, stage)
    assert said is not None
    return said


def test_the_stage_is_named_with_what_lies_beside_it_and_the_flag_that_parks_that() -> None:
    job = replace(JOB, setup=offloading("tokenizer"))
    stages = {stage.name: stage for stage in prediction_of(job).stages}
    denoise = stages["denoise"]
    others = sum(stages[name].weights for name in ("text_guard", "upsampler", "text_encoder"))
    most = denoise.weights + denoise.work + others
    assert out_of_memory(job, "denoise") == (
        f"The GPU's memory does not suffice for denoise: {gib(most)} GiB are predicted on GPU 0 while it "
        f"runs, {gib(denoise.weights)} of its weights, {gib(denoise.work)} of its work and {gib(others)} of "
        "other stages. --offload prompt_upsampler,guardrails,text_encoder,tokenizer parks those in host "
        "memory; docs/troubleshooting.md says what else helps."
    )


def test_a_stage_that_is_alone_already_is_helped_otherwise() -> None:
    said = told(replace(JOB, setup=offloading(*OFFLOADABLE)), "denoise")
    assert "other stages" not in said and "--offload" not in said
    assert said.endswith("docs/troubleshooting.md says what helps.")


def test_in_a_batch_the_stages_to_come_lie_beside_it_from_the_video_before() -> None:
    job = replace(JOB, setup=offloading("guardrails", "prompt_upsampler"))
    assert "--offload" not in told(job, "text_encoder")
    said = told(replace(job, is_batch=True), "text_encoder")
    assert "--offload prompt_upsampler,guardrails,denoise,tokenizer parks" in said


def test_the_stage_of_an_autoregressive_model_is_named_with_its_own_flags() -> None:
    card = CARDS["Cosmos-Predict1-4B"]
    job = replace(JOB, card=card, setup=Setup(model=card.name, offload=frozenset({"token_generation"})))
    assert "--offload tokenizer,token_generation parks" in told(job, "diffusion_decoder")


def test_a_guard_is_called_by_its_stage_and_offloaded_by_the_flags_name() -> None:
    said = told(replace(JOB, setup=offloading()), "upsampler")
    assert "for upsampler: " in said and "--offload guardrails parks" in said


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        (CARD.name, (TextGuard, PromptUpsampler, TextEncoder, Denoise, Tokenizer, VideoGuard)),
        ("Cosmos-Predict1-7B-Video2World", (ImageUpsampler, Denoise)),
        ("Cosmos-Predict2-2B-Video2World", (PromptRefiner, TextEncoder, WanTokenizerStage)),
        ("Cosmos-Predict1-4B", (DiscreteTokenizerStage, TokenGeneration, DiffusionDecoder, Tokenizer)),
    ],
)
def test_something_is_predicted_for_every_stage(name: str, stages: tuple[type[Stage], ...]) -> None:
    job = replace(JOB, card=CARDS[name], setup=Setup(model=name, upsamples=True))
    for stage in stages:
        assert told(job, stage.name).startswith(f"The GPU's memory does not suffice for {stage.name}: ")
    assert out_of_memory(job, "another") is None
