from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.cli import parse_video2world
from cosmos_nemo.cli.invocation import Batch
from cosmos_nemo.request import OFFLOADABLE, RequestError, Setup, Video2WorldRequest
from tests.doors.commands import COMMANDS, NEGATIVE_PROMPT

SEVEN, FOURTEEN = "Cosmos-Predict1-7B-Video2World", "Cosmos-Predict1-14B-Video2World"
INPUT = ["--input_image_or_video_path", "a.png"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _document(title: str, card: str) -> list[str]:
    """A command of the document, which is about Predict2, with one of Predict1's models."""
    [argv] = [list(c.argv) for c in COMMANDS if c.document == "003" and c.title == title]
    argv[argv.index("--diffusion_transformer_dir") + 1] = card
    return argv


def test_the_defaults_are_those_of_the_published_table() -> None:
    invocation = parse_video2world(INPUT)
    assert invocation.setup == Setup(model=SEVEN, upsamples=True)
    assert invocation.request == Video2WorldRequest(
        prompt="",
        height=704,
        width=1280,
        num_frames=121,
        fps=24,
        num_steps=35,
        guidance=7.0,
        sampler="EDM",
        seed=1,
        video_path=Path("outputs/output.mp4"),
        visual_input=Path("a.png"),
        num_input_frames=1,
        num_overlap_frames=9,
        keeps_input_size=False,
    )


def test_a_command_of_the_document_with_another_model_means_what_it_says() -> None:
    invocation = parse_video2world(
        _document("example 2: single generation on the 14B model with model offloading", FOURTEEN)
    )
    assert invocation.setup == Setup(
        model=FOURTEEN,
        assets_dir=Path("checkpoints"),
        upsamples=True,
        offload=frozenset(OFFLOADABLE),
    )
    assert invocation.request == replace(
        parse_video2world(INPUT).request,
        visual_input=Path("assets/diffusion/video2world_input0.jpg"),
        video_path=Path("outputs/diffusion-video2world-14b.mp4"),
    )


def test_a_model_may_be_both_left_out_and_offloaded_as_in_the_document() -> None:
    invocation = parse_video2world(_document("example 1: single generation on the 2B model", SEVEN))
    assert not invocation.setup.upsamples and not invocation.setup.guardrails
    assert invocation.setup.offload == {"prompt_upsampler"}
    request = invocation.request
    assert (request.height, request.width, request.num_frames) == (432, 768, 81)
    assert request.negative_prompt == NEGATIVE_PROMPT


def test_a_batch_of_the_document_takes_its_files_from_the_lines() -> None:
    invocation = parse_video2world(_document("example 4: batch generation", SEVEN))
    folder = Path("diffusion-video2world-2b-batch")
    assert invocation.batch == Batch(
        path=Path("assets/diffusion/batch_inputs/video2world_ps.jsonl"), folder=folder
    )
    assert isinstance(invocation.request, Video2WorldRequest)
    assert invocation.request.num_input_frames == 9
    assert invocation.request.prompt == ""


def test_flags_of_our_own_arrive() -> None:
    invocation = parse_video2world(
        [
            *(*INPUT, "--num_overlap_frames", "1", "--keep_input_size", "--seed", "4", "--num_gpus", "2"),
            *("--sampler", "RES", "--cp_size", "2", "--fps", "30", "--num_video_frames", "233", "--dry_run"),
        ]
    )
    request = invocation.request
    assert isinstance(request, Video2WorldRequest)
    assert (request.num_overlap_frames, request.keeps_input_size, request.seed) == (1, True, 4)
    assert (request.sampler, request.fps, request.num_frames) == ("RES", 30, 233)
    assert (invocation.setup.cp_size, invocation.setup.num_devices) == (2, 2)
    assert invocation.dry_run


def test_the_card_says_what_the_flags_do_not() -> None:
    flags = [*INPUT, "--diffusion_transformer_dir", "mine"]
    request = parse_video2world([*flags, "--model", "Cosmos-1.0-Diffusion-7B-Video2World"]).request
    assert request.sampler == "RES"
    request = parse_video2world([*flags, "--model", "Cosmos-Nano-Video2World"]).request
    assert (request.height, request.width, request.num_frames, request.guidance) == (128, 128, 33, 2.0)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--input_image_or_video_path is missing. Name the file to start from, or pass --batch_input"),
        (["--prompt", "x"], "--input_image_or_video_path is missing"),
        (["--input_image_or_video_path", ""], "--input_image_or_video_path is missing"),
        ([*INPUT, "--disable_prompt_upsampler"], "--prompt is missing"),
        ([*INPUT, "--batch_input_path", "b"], "--input_image_or_video_path has no effect beside --batch_in"),
        (["--batch_input_path", "b", "--prompt", "x"], "--prompt has no effect beside --batch_input_path"),
        (["--batch_input_path", "b", "--video_save_name", "v"], "--video_save_name names one video"),
        (
            [*INPUT, "--word_limit_to_skip_upsampler", "9"],
            r"--word_limit_to_skip_upsampler is for text2world\.py, .* not for video2world\.py",
        ),
        ([*INPUT, "--frame_stride=2"], r"--frame_stride is for world_interpolator\.py, not for video2world"),
        (
            [*INPUT, "--prompt", "x", "--disable_prompt_upsampler", "--prompt_upsampler_dir", "u"],
            "--prompt_upsampler_dir has no effect: no prompt is upsampled",
        ),
        (
            [*INPUT, "--diffusion_transformer_dir", "Cosmos-Predict1-7B-Text2World"],
            r"Cosmos-Predict1-7B-Text2World is a Text2World model: run it with inference/text2world\.py",
        ),
        (
            [*INPUT, "--model", "Cosmos-Predict1-7B-WorldInterpolator"],
            r"WorldInterpolator model: run it with inference/world_interpolator\.py",
        ),
    ],
)
def test_a_flag_that_is_missing_without_effect_or_foreign_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_video2world(flags)


def test_with_the_upsampler_a_prompt_is_neither_needed_nor_refused() -> None:
    """The documents pass one beside it; that it is not used is told when the job is prepared."""
    assert parse_video2world([*INPUT, "--prompt", "x"]).request.prompt == "x"


def test_a_misspelt_folder_is_answered_with_the_nearest_models() -> None:
    with pytest.raises(CatalogError, match=rf"Nearest: .*{FOURTEEN}"):
        parse_video2world([*INPUT, "--diffusion_transformer_dir", "Cosmos-Predict1-14B-Video2Wrld"])


@pytest.mark.parametrize("flags", [["--no_such_flag"], ["--num_input_frames", "many"]])
def test_what_argparse_refuses_ends_with_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_video2world([*INPUT, *flags])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err
