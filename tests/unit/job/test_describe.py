"""The line of a dry run about memory; the rest of its text is tested with what prepares a job."""

from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.catalog import find_card
from cosmos_nemo.job import Job, describe
from cosmos_nemo.job.files import Files
from cosmos_nemo.memory import GIB, host_bytes, stage_memory
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import Setup, Text2WorldRequest
from tests.fakes import CPU

CARD = find_card("Cosmos-Predict1-7B-Text2World")
JOB = Job(
    card=CARD,
    setup=Setup(model=CARD.name, upsamples=True, offload=frozenset({"denoise", "tokenizer"})),
    requests=(Text2WorldRequest(prompt="a cat"),),
    needs=(),
    files=Files(),
    plan=Plan(),
    device=CPU,
    backend=torch_backend(),
    text_cache=None,
    identities={},
)


def memory_line(job: Job) -> str:
    (line,) = [line for line in describe(job).splitlines() if line.startswith("predicted on GPUs")]
    return line


@pytest.mark.parametrize(
    ("plan", "whose"),
    [
        (Plan(), ""),
        (Plan(cfg=2, cp=4), ", all 8 ranks together,"),
        (Plan(replicas=2), ", all 2 ranks together,"),
    ],
    ids=str,
)
def test_the_host_memory_is_that_of_all_ranks_together_and_says_so(plan: Plan, whose: str) -> None:
    stages = stage_memory(CARD, plan=plan)
    host = host_bytes(stages, JOB.setup.offload, plan=plan) / GIB
    told = f"{host:.1f} of host memory{whose} for what is offloaded (denoise, tokenizer)"
    assert memory_line(replace(JOB, plan=plan)).endswith(told)


def test_guards_and_upsampler_that_flags_give_to_a_card_without_are_counted() -> None:
    nano = find_card("Cosmos-Nano-Text2World")
    given = CARD.sources.guardrail
    assert given and not nano.sources.guardrail
    for guardrails, upsamples in ((True, False), (False, True)):
        setup = Setup(
            model=nano.name, guardrails=guardrails, upsamples=upsamples, guardrail_dir=Path("guards")
        )
        text = describe(replace(JOB, card=nano, setup=setup))
        assert ("text_guard 15.0 + 0.2" in text) == ("video_guard 1.7 + " in text) == guardrails
        assert ("upsampler " in text.partition("weights + work")[2]) == upsamples
