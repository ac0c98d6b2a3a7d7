"""The line of a dry run about memory; the rest of its text is tested with what prepares a job."""

from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.catalog import find_card
from cosmos_nemo.job import Job, describe
from cosmos_nemo.job.files import Files
from cosmos_nemo.job.visual_inputs import VisualInput
from cosmos_nemo.memory import GIB, host_bytes, stage_memory
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import InterpolationRequest, Setup, Text2WorldRequest, Video2WorldRequest
from cosmos_nemo.stages.visual_input import VisualFacts
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


VIDEO = find_card("Cosmos-Predict1-7B-Video2World")
BETWEEN = find_card("Cosmos-Predict1-7B-WorldInterpolator")


def job_of_video(**fields: object) -> Job:
    request = Video2WorldRequest(prompt="a cat", visual_input=Path("cat.mp4"), sampler="EDM", **fields)
    return replace(JOB, card=VIDEO, requests=(request,))


def job_between(*, known_frames: int | None = None, **fields: object) -> Job:
    request = InterpolationRequest(
        **{
            "prompt": "a cat",
            "visual_input": Path("cat.mp4"),
            "num_frames": 10,
            "num_input_frames": 1,
            "guidance": -1.0,
            "seed": 11,
            **fields,
        }
    )
    found = {}
    if known_frames is not None:
        facts = VisualFacts(num_frames=known_frames, height=48, width=64, fps=8.0, is_image=False)
        found[request.visual_input] = VisualInput(sha256="", facts=facts)
    return replace(JOB, card=BETWEEN, requests=(request,), visual_inputs=found)


def test_a_video2world_says_what_it_goes_on_from() -> None:
    lines = describe(job_of_video()).splitlines()
    assert lines[0].startswith(f"{VIDEO.name}: 121 frames of 1280 x 704 at 24 fps, seed 1")
    assert lines[1] == "goes on from the last frame of cat.mp4"
    assert lines[2] == "latent 16 x 88 x 160, 56,320 tokens; EDM, 35 steps, guidance 7: 70 network calls"
    assert "goes on from the last 9 frames of cat.mp4" in describe(job_of_video(num_input_frames=9))


def test_a_long_video2world_says_its_chunks_and_the_work_of_each() -> None:
    text = describe(job_of_video(num_frames=345, num_overlap_frames=9))
    assert text.startswith(f"{VIDEO.name}: 345 frames")
    told = "3 chunks of 121 frames, each of which goes on from the last 9 frames of the one before"
    assert told in text
    assert "latent 16 x 88 x 160, 56,320 tokens;" in text and "70 network calls a chunk\n" in text
    assert memory_line(job_of_video(num_frames=345)) == memory_line(job_of_video())
    assert "was trained on" not in text
    short = describe(job_of_video(num_frames=57))
    assert "with --num_video_frames 57 its videos may be worse" in short and "chunk" not in short


def test_an_interpolation_says_its_clips_once_the_video_was_looked_at() -> None:
    text = describe(job_between(known_frames=5))
    assert text.startswith(f"{BETWEEN.name}: 37 frames of 1280 x 704 at 24 fps, seed 11")
    assert (
        "4 clips of 10 frames, each between two frames of cat.mp4 that are 1 apart, from its frame 0" in text
    )
    assert "latent 3 x 88 x 160, 10,560 tokens; RES, 35 steps, guidance -1: 36 network calls a clip" in text
    assert "was trained on" not in text
    text = describe(job_between(known_frames=9, frame_stride=3, frame_index_start=2, num_frame_pairs=2))
    assert "19 frames of" in text and "2 clips of 10 frames" in text
    assert "that are 3 apart, from its frame 2" in text


def test_an_interpolation_of_a_video_that_was_not_looked_at_names_no_number_unless_asked() -> None:
    assert "\nclips of 10 frames, each between" in describe(job_between())
    assert "\n1 clip of 10 frames, each between" in describe(job_between(num_frame_pairs=1))


def test_the_memory_of_an_upsampler_that_sees_is_told() -> None:
    assert "upsampler 23.6 + 0.9" in describe(job_of_video())
    assert "upsampler 22.8 + 0.2" in describe(JOB)


def test_the_videos_of_a_batch_start_each_from_its_own_input() -> None:
    for job in (job_of_video(), job_between(known_frames=5)):
        text = describe(replace(job, is_batch=True, needs=("weights",)))
        assert "of its visual input" in text and "cat.mp4" not in text and "4 clips" not in text
