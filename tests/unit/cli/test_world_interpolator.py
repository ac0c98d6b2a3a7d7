from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.cli import parse_world_interpolator
from cosmos_nemo.cli.invocation import Batch, Invocation
from cosmos_nemo.request import InterpolationRequest, RequestError, Setup
from tests.doors.commands import COMMANDS

MODEL = "Cosmos-Predict1-7B-WorldInterpolator"
INPUT = ["--input_image_or_video_path", "a.mp4"]
DEFAULT = InterpolationRequest(
    prompt="",
    height=704,
    width=1280,
    num_frames=10,
    fps=24,
    num_steps=35,
    guidance=-1.0,
    sampler="RES",
    seed=11,
    video_path=Path("outputs/output.mp4"),
    visual_input=Path("a.mp4"),
    num_input_frames=2,
    frame_stride=1,
    frame_index_start=0,
    num_frame_pairs=None,
    draws_noise=False,
)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_documents_command_means_what_it_says() -> None:
    [argv] = [c.argv for c in COMMANDS if c.document == "002" and c.title.startswith("example 1")]
    assert parse_world_interpolator(argv) == Invocation(
        setup=Setup(
            model=MODEL,
            assets_dir=Path("checkpoints"),
            upsamples=True,
            offload=frozenset({"prompt_upsampler"}),
        ),
        request=replace(
            DEFAULT,
            visual_input=Path("assets/diffusion/interpolation_example.mp4"),
            num_input_frames=1,
            num_frame_pairs=2,
            video_path=Path("outputs/diffusion-world-interpolator-7b.mp4"),
        ),
    )


def test_the_defaults_are_what_the_released_script_ran_with() -> None:
    """Its own defaults of --guidance 7 and --seed 1 never arrived, and 121 frames failed."""
    invocation = parse_world_interpolator(INPUT)
    assert invocation.setup == Setup(model=MODEL, upsamples=True)
    assert invocation.request == DEFAULT


def test_flags_that_were_read_and_forgotten_count() -> None:
    flags = [*INPUT, "--guidance", "2.5", "--seed", "1", "--frame_index_start", "3", "--frame_stride", "4"]
    more = ["--num_frame_pairs", "5", "--draw_condition_noise", "--negative_prompt", ""]
    assert parse_world_interpolator([*flags, *more]).request == replace(
        DEFAULT,
        guidance=2.5,
        seed=1,
        frame_index_start=3,
        frame_stride=4,
        num_frame_pairs=5,
        draws_noise=True,
        negative_prompt="",
    )


def test_a_batch_goes_to_its_folder() -> None:
    invocation = parse_world_interpolator(["--batch_input_path", "b", "--video_save_folder", "o"])
    assert invocation.batch == Batch(path=Path("b"), folder=Path("o"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--input_image_or_video_path is missing"),
        ([*INPUT, "--disable_prompt_upsampler"], "--prompt is missing"),
        ([*INPUT, "--keep_input_size"], r"--keep_input_size is for video2world\.py, not for world_interpo"),
        ([*INPUT, "--subject_name", "x"], r"--subject_name is for general\.py"),
        (
            ["--conditioned_image_or_video_path", "x"],
            r"world_interpolator\.py has --input_image_or_video_path instead of --conditioned_image_or_video",
        ),
        (
            [*INPUT, "--video_save_path", "x.mp4"],
            r"has --video_save_folder and --video_save_name instead of --video_save_path\.$",
        ),
        (
            [*INPUT, "--disable_guardrail", "--offload_guardrail_models"],
            "--offload_guardrail_models has no effect beside --disable_guardrail",
        ),
        ([*INPUT, "--batch_input_path", "b"], "--input_image_or_video_path has no effect"),
        (
            [*INPUT, "--diffusion_transformer_dir", "Cosmos-Predict1-7B-Video2World"],
            r"is a Video2World model: run it with inference/video2world\.py",
        ),
    ],
)
def test_a_flag_that_is_missing_without_effect_or_foreign_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_world_interpolator(flags)
