from pathlib import Path

import pytest

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.cli import parse_general
from cosmos_nemo.cli.invocation import Batch
from cosmos_nemo.request import (
    DEFAULT_NEGATIVE_PROMPT,
    OFFLOADABLE,
    RequestError,
    Setup,
    Text2WorldRequest,
    Video2WorldRequest,
)


def test_the_defaults_are_those_of_the_published_table() -> None:
    invocation = parse_general(["--prompt", "a robot"])
    assert invocation.setup == Setup(model="Cosmos-1.0-Diffusion-7B-Text2World")
    assert invocation.request == Text2WorldRequest(
        prompt="a robot",
        negative_prompt=DEFAULT_NEGATIVE_PROMPT,
        subject_name="",
        height=704,
        width=1280,
        num_frames=121,
        fps=24,
        num_steps=35,
        guidance=7.0,
        sampler="RES",
        seed=1,
        video_path=Path("Cosmos-1.0-Diffusion-7B-Text2World.mp4"),
    )


def test_sizes_default_to_the_cards() -> None:
    request = parse_general(["--prompt", "x", "--model", "Cosmos-Nano-Text2World"]).request
    assert (request.height, request.width, request.num_frames) == (128, 128, 33)


def test_every_flag_arrives() -> None:
    invocation = parse_general(
        [
            "--model",
            "Cosmos-1.0-Diffusion-14B-Text2World",
            "--prompt",
            "p",
            "--negative_prompt",
            "n",
            "--subject_name",
            "s",
            "--guidance",
            "3.5",
            "--sampler",
            "EDM",
            "--video_save_path",
            "o/v.mp4",
            "--fps",
            "30",
            "--height",
            "480",
            "--width",
            "640",
            "--seed",
            "9",
            "--num_devices",
            "4",
            "--cp_size",
            "2",
            "--num_steps",
            "20.0",
            "--num_video_frames",
            "57",
            "--tokenizer_dir",
            "tok",
            "--cosmos_assets_dir",
            "assets",
            "--nemo_checkpoint",
            "ckpt",
            "--t5_cache_dir",
            "t5",
            "--text_encoder_dir",
            "enc",
            "--tensor_parallel",
            "2",
            "--cfg_parallel",
            "off",
            "--backend",
            "torch",
            "--precision",
            "fp8",
            "--offload",
            "denoise,tokenizer",
            "--text_encoder_dtype",
            "float32",
            "--rope_dtype",
            "bfloat16",
            "--enable_prompt_upsampler",
            "--word_limit_to_skip_upsampler",
            "9",
            "--prompt_upsampler_dir",
            "up",
            "--guardrail_dir",
            "gd",
            "--text_guard_dir",
            "tg",
            "--dry_run",
        ]
    )
    assert invocation.dry_run and invocation.batch is None
    assert invocation.setup == Setup(
        model="Cosmos-1.0-Diffusion-14B-Text2World",
        nemo_checkpoint=Path("ckpt"),
        assets_dir=Path("assets"),
        tokenizer_dir=Path("tok"),
        text_encoder_dir=Path("enc"),
        t5_cache_dir=Path("t5"),
        num_devices=4,
        cp_size=2,
        tensor_parallel=2,
        cfg_parallel="off",
        backend="torch",
        precision="fp8",
        text_encoder_dtype="float32",
        rope_dtype="bfloat16",
        offload=frozenset({"denoise", "tokenizer"}),
        upsamples=True,
        word_limit=9,
        upsampler_dir=Path("up"),
        guardrail_dir=Path("gd"),
        text_guard_dir=Path("tg"),
    )
    assert invocation.request == Text2WorldRequest(
        prompt="p",
        negative_prompt="n",
        subject_name="s",
        height=480,
        width=640,
        num_frames=57,
        fps=30,
        num_steps=20,
        guidance=3.5,
        sampler="EDM",
        seed=9,
        video_path=Path("o/v.mp4"),
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt_upsampler_dir", "x"], "--prompt_upsampler_dir has no effect"),
        (["--word_limit_to_skip_upsampler", "9"], "--word_limit_to_skip_upsampler has no effect"),
        (["--disable_guardrail", "--guardrail_dir", "x"], "--guardrail_dir has no effect"),
        (["--disable_guardrail", "--text_guard_dir", "x"], "--text_guard_dir has no effect"),
        (["--replicas", "2"], "--replicas shares the videos of a batch"),
        (["--batch_input_path", "b.jsonl"], "--prompt has no effect beside --batch_input_path"),
        (["--video_save_folder", "x"], "--video_save_folder is for a batch"),
        (["--num_steps", "2.5"], "--num_steps 2.5"),
        (["--num_steps", "nan"], "--num_steps nan"),
        (["--num_steps", "inf"], "--num_steps inf"),
    ],
)
def test_a_flag_that_cannot_be_served_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_general(["--prompt", "x", *flags])


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(CatalogError, match="--model Cosmos-7B"):
        parse_general(["--prompt", "x", "--model", "Cosmos-7B"])


def test_without_a_prompt_or_a_batch_there_is_nothing_to_make() -> None:
    with pytest.raises(RequestError, match="--prompt is missing"):
        parse_general([])


@pytest.mark.parametrize("argv", [["--prompt", "x", "--heigth", "704"], ["--prompt", "x", "--seed", "one"]])
def test_a_misspelt_flag_or_a_word_for_a_number_exits_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_general(argv)
    assert ended.value.code == 2


def test_an_abbreviated_flag_is_not_guessed() -> None:
    with pytest.raises(SystemExit):
        parse_general(["--prompt", "x", "--neg", "y"])


def test_guardrails_are_on_and_the_upsampler_is_off_unless_asked_for() -> None:
    setup = parse_general(["--prompt", "x"]).setup
    assert (setup.guardrails, setup.upsamples) == (True, False)
    setup = parse_general(["--prompt", "x", "--disable_guardrail", "--enable_prompt_upsampler"]).setup
    assert (setup.guardrails, setup.upsamples) == (False, True)


def test_a_batch_goes_to_its_folder_and_may_be_shared_by_replicas() -> None:
    invocation = parse_general(
        ["--batch_input_path", "b.jsonl", "--video_save_folder", "o", "--replicas", "2", "--seed", "3"]
    )
    assert invocation.batch == Batch(path=Path("b.jsonl"), folder=Path("o"))
    assert (invocation.setup.replicas, invocation.request.seed) == (2, 3)
    assert parse_general(["--batch_input_path", "b"]).batch == Batch(path=Path("b"), folder=Path("outputs"))
    with pytest.raises(RequestError, match="--video_save_path names one video"):
        parse_general(["--batch_input_path", "b", "--video_save_path", "v.mp4"])


@pytest.mark.parametrize(
    ("flags", "offload"),
    [
        (["--offload", "all"], set(OFFLOADABLE)),
        (
            ["--offload_guardrail_models", "--offload", "tokenizer, denoise"],
            {"guardrails", "tokenizer", "denoise"},
        ),
        (["--offload_prompt_upsampler"], {"prompt_upsampler"}),
        (["--offload_text_encoder_model"], {"text_encoder"}),
        (["--offload_diffusion_transformer"], {"denoise"}),
        (["--offload_tokenizer"], {"tokenizer"}),
    ],
)
def test_what_is_offloaded_may_be_said_in_either_way(flags: list[str], offload: set[str]) -> None:
    assert parse_general(["--prompt", "x", *flags]).setup.offload == offload


V2W = ["--model", "Cosmos-1.0-Diffusion-14B-Video2World"]
VISUAL = ["--conditioned_image_or_video_path", "a.png"]


def test_a_video2world_model_goes_on_from_a_file_and_a_prompt() -> None:
    invocation = parse_general([*V2W, *VISUAL, "--prompt", "p", "--num_input_frames", "9"])
    assert invocation.setup == Setup(model=V2W[1])
    assert invocation.request == Video2WorldRequest(
        prompt="p",
        visual_input=Path("a.png"),
        num_input_frames=9,
        video_path=Path("Cosmos-1.0-Diffusion-14B-Video2World.mp4"),
    )
    request = parse_general([*V2W, *VISUAL, "--enable_prompt_upsampler"]).request
    assert isinstance(request, Video2WorldRequest)
    assert (request.prompt, request.num_input_frames) == ("", 1)


def test_a_batch_of_a_video2world_model_names_no_file_of_its_own() -> None:
    request = parse_general([*V2W, "--batch_input_path", "b"]).request
    assert isinstance(request, Video2WorldRequest)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            [*VISUAL, "--prompt", "x"],
            "--conditioned_image_or_video_path has no effect: .*7B-Text2World start",
        ),
        (["--num_input_frames", "1", "--prompt", "x"], "--num_input_frames has no effect: .*-Text2World"),
        ([*V2W, "--prompt", "x"], "--conditioned_image_or_video_path is missing"),
        ([*V2W, *VISUAL], "--prompt is missing"),
        ([*V2W, *VISUAL, "--batch_input_path", "b"], "--conditioned_image_or_video_path has no effect besid"),
        (
            [*V2W, *VISUAL, "--enable_prompt_upsampler", "--word_limit_to_skip_upsampler", "4"],
            "--word_limit_to_skip_upsampler has no effect: the upsampler of a Video2World",
        ),
        (
            ["--prompt", "x", "--input_image_or_video_path", "a"],
            r"^general\.py has --conditioned_image_or_video_path instead of --input_image_or_video_path\.$",
        ),
        (["--prompt", "x", "--num_gpus=2"], r"general\.py has --num_devices instead of --num_gpus\.$"),
        (
            ["--prompt", "x", "--model", "Cosmos-Predict1-7B-WorldInterpolator"],
            r"run it with inference/world_interpolator\.py",
        ),
    ],
)
def test_a_flag_of_models_with_another_task_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_general(flags)


def test_a_name_of_several_networks_is_the_one_for_the_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "Cosmos-Predict2-2B-Video2World"
    argv = ["--model", name, "--prompt", "x", "--conditioned_image_or_video_path", "a.png"]
    assert parse_general(argv).setup.model == f"{name}-720p-16fps"
    small = parse_general([*argv, "--height", "432", "--width", "768", "--load_ema"])
    assert (small.setup.model, small.setup.averaged) == (f"{name}-480p-16fps", True)
    with pytest.raises(RequestError, match="--load_ema is for Predict2's files"):
        parse_general(["--prompt", "x", "--load_ema"])
