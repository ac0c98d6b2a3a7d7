import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.request import (
    DEFAULT_NEGATIVE_PROMPT,
    SAMPLER_NAMES,
    InterpolationRequest,
    RequestError,
    Setup,
    Text2WorldRequest,
    Video2WorldRequest,
    latent_shape,
    validate_request,
    validate_setup,
)

CARD = CARDS["Cosmos-1.0-Diffusion-7B-Text2World"]
GOOD = Text2WorldRequest(prompt="a robot")


def test_the_default_negative_prompt_is_the_released_one() -> None:
    digest = hashlib.sha256(DEFAULT_NEGATIVE_PROMPT.encode()).hexdigest()
    assert digest == "6d7ca93077e7e4a8417947ab03266c97dd44c9ec0d7b97fa4272ed956895239f"


def test_the_released_defaults_are_valid_for_both_cards() -> None:
    for name in ("7B", "14B"):
        validate_request(GOOD, CARDS[f"Cosmos-1.0-Diffusion-{name}-Text2World"])


def test_a_released_request_has_the_released_latent() -> None:
    assert latent_shape(GOOD, CARD) == (1, 16, 16, 88, 160)


@pytest.mark.parametrize("frames", [9, 17, 113, 121])
def test_frames_of_8k_plus_1_are_made(frames: int) -> None:
    validate_request(replace(GOOD, num_frames=frames), CARD)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": "  "}, ["--prompt", "empty"]),
        ({"height": 700}, ["--height 700", "multiples of 16", "Pass 704"]),
        ({"height": 0}, ["--height 0", "Pass 16"]),
        ({"height": -16}, ["--height -16", "Pass 16"]),
        ({"height": 1936}, ["--height 1936", "1920"]),
        ({"width": 1281}, ["--width 1281", "Pass 1280"]),
        ({"width": 4096}, ["--width 4096", "Pass 1920"]),
        ({"num_frames": 120}, ["--num_video_frames 120", "Pass 113 or 121"]),
        ({"num_frames": 1}, ["--num_video_frames 1", "Pass 9 or 17"]),
        ({"num_frames": 129}, ["--num_video_frames 129", "Pass 121"]),
        ({"num_frames": 0}, ["--num_video_frames 0", "Pass 9"]),
        ({"num_frames": -7}, ["--num_video_frames -7", "Pass 9"]),
        ({"fps": 0}, ["--fps 0"]),
        ({"num_steps": 0}, ["--num_steps 0"]),
        ({"num_steps": -5}, ["--num_steps -5"]),
        ({"num_steps": 10**10}, ["--num_steps 10000000000", "at most 100000"]),
        ({"num_steps": 100_001}, ["--num_steps 100001"]),
        ({"guidance": math.nan}, ["--guidance nan"]),
        ({"guidance": math.inf}, ["--guidance inf"]),
        ({"sampler": "DDIM"}, ["--sampler DDIM", "RES"]),
        ({"seed": -1}, ["--seed -1"]),
        ({"seed": 2**32}, ["--seed 4294967296"]),
        ({"video_path": Path("outputs")}, ["--video_save_path outputs", ".mp4"]),
        ({"video_path": Path("x.gif")}, ["--video_save_path x.gif", ".mp4"]),
    ],
)
def test_a_bad_value_is_refused_with_flag_value_and_way_out(
    changes: dict[str, object], says: list[str]
) -> None:
    with pytest.raises(RequestError) as refused:
        validate_request(replace(GOOD, **changes), CARD)  # type: ignore[arg-type]
    for part in says:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backend": "jax"}, "--backend jax"),
        ({"precision": "fp16"}, "--precision fp16"),
        ({"cfg_parallel": "yes"}, "--cfg_parallel yes"),
        ({"text_encoder_dtype": "int8"}, "--text_encoder_dtype int8"),
        ({"offload": frozenset({"everything"})}, "--offload everything"),
        ({"rope_dtype": "float16"}, "--rope_dtype float16"),
        ({"num_devices": 0}, "--num_devices 0"),
        ({"num_devices": -1}, "--num_devices -1"),
    ],
)
def test_a_bad_setup_is_refused_by_name(changes: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        validate_setup(Setup(model=CARD.name, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("guidance", "branches"), [(7.0, 2), (0.0, 1), (-1.0, 1), (1.0, 2), (-2.0, 2)])
def test_one_branch_only_at_guidance_0_and_minus_1(guidance: float, branches: int) -> None:
    from cosmos_nemo.sampling.denoiser import branches_needed

    assert replace(GOOD, guidance=guidance).num_branches == branches == len(branches_needed(guidance))


def test_every_sampler_name_is_a_sampler() -> None:
    from cosmos_nemo.sampling.samplers import SAMPLERS

    assert set(SAMPLER_NAMES) == set(SAMPLERS)


V2W = Video2WorldRequest(prompt="x", visual_input=Path("a.png"))
CLIP = CARDS["Cosmos-Predict1-7B-WorldInterpolator"]
BETWEEN = InterpolationRequest(prompt="x", visual_input=Path("a.mp4"), num_frames=10)


@pytest.mark.parametrize("frames", [9 + 8, 121, 129, 241, 6001])
def test_a_world_that_goes_on_may_be_longer_than_the_network_makes_at_once(frames: int) -> None:
    for given in (1, 9):
        validate_request(replace(V2W, num_frames=frames, num_input_frames=given), CARD)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_frames": 120}, "--num_video_frames 120 .* Pass 113 or 121"),
        ({"num_frames": 6009}, "from 9 to 6001. Pass 6001"),
        ({"num_input_frames": 2}, "--num_input_frames 2 must be 1 or 9"),
        ({"num_input_frames": 9, "num_frames": 9}, "leaves nothing of 9 frames"),
        ({"num_overlap_frames": 5, "num_frames": 129}, "--num_overlap_frames 5 must be 1 or 9"),
        ({"num_overlap_frames": 5}, "--num_overlap_frames 5 must be 1 or 9"),
        ({"prompt": " "}, "--prompt is empty"),
    ],
)
def test_a_world_that_cannot_go_on_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        validate_request(replace(V2W, **changes), CARD)


def test_the_frames_between_two_have_a_latent_frame_for_the_last() -> None:
    validate_request(BETWEEN, CLIP)
    assert latent_shape(BETWEEN, CLIP) == (1, 16, 3, 88, 160)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_frames": 121}, "--num_video_frames 121 .* clips have 10 frames"),
        ({"frame_stride": 0}, "--frame_stride 0 must be at least 1"),
        ({"frame_index_start": -1}, "--frame_index_start -1 must be at least 0"),
        ({"num_frame_pairs": 0}, "--num_frame_pairs 0 must be at least 1"),
        ({"num_input_frames": 0}, "--num_input_frames 0 must be at least 1"),
    ],
)
def test_an_interpolation_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        validate_request(replace(BETWEEN, **changes), CLIP)


def test_who_has_the_visual_input_described_needs_no_prompt() -> None:
    validate_request(replace(V2W, prompt=""), CARD, prompt_is_made=True)


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"frame_stride": 2}, [0, 2, 4]),
        ({"frame_stride": 3}, [0, 3]),
        ({"num_frame_pairs": 2}, [0, 1, 2]),
        ({"frame_index_start": 2}, [2, 3, 4]),
        ({"frame_index_start": 1, "num_frame_pairs": 1, "frame_stride": 3}, [1, 4]),
        ({"num_input_frames": 5}, [0, 1, 2, 3, 4]),
    ],
)
def test_the_given_frames_are_a_stride_apart_and_end_within_the_video(
    changes: dict[str, Any], numbers: list[int]
) -> None:
    assert list(replace(BETWEEN, **changes).given_frames(5)) == numbers


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_frame_pairs": 5}, "there are 4 pair.* but --num_frame_pairs is 5"),
        ({"num_frame_pairs": 3, "frame_stride": 2}, "there are 2 pair.* but --num_frame_pairs is 3"),
        ({"frame_index_start": 4}, "--frame_index_start 4 .* there are 0 pair.*, none of them a pair"),
        ({"frame_index_start": 9}, "there are 0 pair"),
        ({"frame_stride": 5}, "--frame_stride 5 there are 0 pair"),
        ({"num_input_frames": 7}, "fewer than --num_input_frames 7"),
    ],
)
def test_a_video_without_enough_frames_is_told_how_many_pairs_it_has(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(RequestError, match=rf"a.mp4 has 5 frame\(s\).*{says}"):
        replace(BETWEEN, **changes).given_frames(5)


@pytest.mark.parametrize(
    ("limits", "changes", "says"),
    [
        ({"num_frames": 9}, {"num_frames": 129}, "--num_overlap_frames 9 leaves nothing of 9 frames"),
        ({"max_frames": 20}, {"num_frames": 17}, "card.json must give 8k.1 frames"),
    ],
)
def test_a_card_of_which_no_chunks_can_be_made_is_refused(
    limits: dict[str, int], changes: dict[str, int], says: str
) -> None:
    card = replace(CARD, video=replace(CARD.video, **limits))
    with pytest.raises(RequestError, match=says):
        validate_request(replace(V2W, **changes), card)


def test_one_run_makes_no_more_clips_than_the_host_can_hold() -> None:
    with pytest.raises(RequestError, match="500 clips at most"):
        BETWEEN.given_frames(502)
    assert len(BETWEEN.given_frames(501)) == 501
