"""What the flags make of each stage. No stage reads anything before it is entered."""

from pathlib import Path
from typing import Any

import pytest

from cosmos_nemo.catalog import ModelCard, find_card
from cosmos_nemo.job import Job
from cosmos_nemo.job.files import Files
from cosmos_nemo.job.stages import pipeline_of as pipeline_of_job
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import OFFLOADABLE, OFFLOADABLE_OF_TOKENS, Setup, Text2WorldRequest
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler
from tests.fakes import CPU

CARD = find_card("Cosmos-Predict1-7B-Text2World")
OFFLOAD_NAME = {
    "text_guard": "guardrails",
    "upsampler": "prompt_upsampler",
    "text_encoder": "text_encoder",
    "denoise": "denoise",
    "tokenizer": "tokenizer",
    "video_guard": "guardrails",
}
"""Stage, in the order of the pipeline -> what --offload calls it."""
PREFETCHED = {"denoise", "tokenizer", "video_guard"}
"""Whether the others are needed shows when they are entered: a prompt may be blocked, long, or cached."""


def pipeline_of(*, card: ModelCard = CARD, **setup: Any) -> Any:
    folders = {name: Path(name) for name in Files.__dataclass_fields__}
    job = Job(
        card=card,
        setup=Setup(**{"model": card.name, "upsamples": True, **setup}),
        requests=(Text2WorldRequest(prompt="a cat"),),
        needs=(),
        files=Files(**folders),
        plan=Plan(),
        device=CPU,
        backend=torch_backend(),
        text_cache=None,
        identities={},
    )
    return pipeline_of_job(job, start_alone(CPU))


def parking(**setup: Any) -> dict[str, tuple[bool, bool]]:
    """Stage -> whether it is offloaded, and whether it is prefetched."""
    return {stage.name: (stage.offload, stage.prefetches) for stage in pipeline_of(**setup).stages}


@pytest.mark.parametrize("flags", [(), *((name,) for name in OFFLOADABLE), OFFLOADABLE[:4]], ids="+".join)
def test_a_stage_is_parked_exactly_when_asked_and_prefetched_beside_others(flags: tuple[str, ...]) -> None:
    assert parking(offload=frozenset(flags)) == {
        stage: (name in flags, stage in PREFETCHED) for stage, name in OFFLOAD_NAME.items()
    }


def test_nothing_is_prefetched_when_everything_is_offloaded() -> None:
    assert parking(offload=frozenset(OFFLOADABLE)) == dict.fromkeys(OFFLOAD_NAME, (True, False))


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ({"guardrails": False}, ("upsampler", "text_encoder", "denoise", "tokenizer")),
        (
            {"upsamples": False},
            ("text_guard", "text_encoder", "denoise", "tokenizer", "video_guard"),
        ),
        ({"guardrails": False, "upsamples": False}, ("text_encoder", "denoise", "tokenizer")),
    ],
    ids=["no guardrails", "no upsampler", "neither"],
)
def test_everything_is_everything_that_runs(off: dict[str, bool], left: tuple[str, ...]) -> None:
    everything = frozenset(OFFLOAD_NAME[name] for name in left)
    assert parking(offload=everything, **off) == dict.fromkeys(left, (True, False))
    for kept in everything:
        assert parking(offload=everything - {kept}, **off) == {
            name: (OFFLOAD_NAME[name] != kept, name in PREFETCHED) for name in left
        }


def test_the_upsampler_has_the_word_limit_that_was_asked_for() -> None:
    upsampler = pipeline_of(word_limit=17).upsampler
    assert isinstance(upsampler, PromptUpsampler)
    assert upsampler.word_limit == 17


def test_each_stage_has_its_own_files_device_and_types() -> None:
    pipeline = pipeline_of(text_encoder_dtype="bfloat16")
    guard, upsampler, encoder, denoise, tokenizer, video_guard = pipeline.stages
    assert (guard.word_lists, guard.folder) == (Path("guardrail/blocklist"), Path("text_guard"))
    folders = [stage.folder for stage in (upsampler, encoder, tokenizer, video_guard)]
    assert folders == [Path(name) for name in ("upsampler", "text_encoder", "tokenizer", "guardrail")]
    assert denoise.checkpoint == Path("weights")
    assert {stage.device for stage in pipeline.stages} == {CPU}
    dtypes = [str(stage.dtype)[6:] for stage in (guard, upsampler, encoder, denoise, tokenizer, video_guard)]
    assert dtypes == ["float32", "float32", "bfloat16", "float32", "float32", "float32"]


def token_parking(**setup: Any) -> dict[str, tuple[bool, bool]]:
    """As parking, of an autoregressive model."""
    card = find_card("Cosmos-Predict1-4B")
    pipeline = pipeline_of(card=card, model=card.name, upsamples=False, **setup)
    return {stage.name: (stage.offload, stage.prefetches) for stage in pipeline.stages}


@pytest.mark.parametrize("kept", OFFLOADABLE_OF_TOKENS)
def test_the_stages_of_tokens_are_prefetched_unless_all_that_run_are_offloaded(kept: str) -> None:
    everything = frozenset(OFFLOADABLE_OF_TOKENS)
    names = {"discrete_tokenizer": "tokenizer", "video_guard": "guardrails"}
    stages = ("discrete_tokenizer", "token_generation", "diffusion_decoder", "tokenizer", "video_guard")
    assert token_parking(offload=everything) == dict.fromkeys(stages, (True, False))
    assert token_parking(offload=everything - {kept}) == {
        stage: (names.get(stage, stage) != kept, True) for stage in stages
    }


def test_a_decoder_that_does_not_run_need_not_be_offloaded_for_everything_to_be() -> None:
    offload = frozenset(OFFLOADABLE_OF_TOKENS) - {"diffusion_decoder"}
    found = token_parking(offload=offload, decodes_by_diffusion=False)
    assert found == dict.fromkeys(("discrete_tokenizer", "token_generation", "video_guard"), (True, False))
