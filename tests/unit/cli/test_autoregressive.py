"""The command line of inference/base.py."""

from pathlib import Path

import pytest

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.cli import Invocation, parse_autoregressive
from cosmos_nemo.request import AutoregressiveRequest, RequestError
from tests.doors.commands import commands_of

EXAMPLES = [command for command in commands_of("001") if command.title.startswith("example")]
NANO = "Cosmos-Nano-Autoregressive"
CLIP = ("--input_image_or_video_path", "clip.mp4")


def request_of(*flags: str) -> AutoregressiveRequest:
    request = parse_autoregressive([*CLIP, *flags]).request
    assert isinstance(request, AutoregressiveRequest)
    return request


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: command.title)
def test_the_documents_commands_are_understood(command) -> None:
    asked: Invocation = parse_autoregressive(command.argv)
    assert isinstance(asked.request, AutoregressiveRequest)
    assert asked.setup.model == "Cosmos-Predict1-4B"
    assert asked.setup.offload == {"diffusion_decoder", "tokenizer"}
    assert (asked.request.temperature, asked.request.top_p, asked.request.top_k) == (1.0, 0.8, None)
    assert asked.request.num_input_frames == 9 and asked.request.prompt == ""
    is_batch = "batch" in command.title
    assert (asked.batch is not None) == is_batch
    if not is_batch:
        assert asked.request.visual_input == Path("assets/autoregressive/input.mp4")
        assert asked.request.video_path.parent == Path("outputs")
    assert asked.setup.num_devices == (8 if "multi-GPU" in command.title else None)


def test_what_no_flag_says_is_the_released_scripts() -> None:
    asked = parse_autoregressive(CLIP)
    request = asked.request
    assert (request.height, request.width, request.num_frames, request.fps) == (640, 1024, 33, 25)
    assert (request.num_steps, request.guidance, request.sampler, request.seed) == (15, 1.8, "EDM", 0)
    assert request.video_path == Path("outputs/output.mp4")
    assert asked.setup.tensor_parallel is None and asked.setup.guardrails and not asked.setup.upsamples
    assert asked.setup.decodes_by_diffusion and asked.setup.batch_size == 1


def test_an_image_gives_one_frame_whatever_the_number_says() -> None:
    assert request_of("--input_type", "image").num_input_frames == 1
    assert request_of("--num_input_frames", "1").num_input_frames == 1


def test_top_k_stands_instead_of_the_models_top_p() -> None:
    drawn = request_of("--top_k", "50")
    assert (drawn.top_k, drawn.top_p) == (50, None)
    both = request_of("--top_k", "50", "--top_p", "0.5")
    assert (both.top_k, both.top_p) == (50, 0.5)


def test_the_model_is_called_as_its_folder(tmp_path: Path) -> None:
    asked = parse_autoregressive([*CLIP, "--ar_model_dir", "Cosmos-Predict1-12B"])
    assert asked.setup.model == "Cosmos-Predict1-12B"
    with pytest.raises(CatalogError, match="is no model's name: add --model NAME"):
        parse_autoregressive([*CLIP, "--ar_model_dir", str(tmp_path / "mine")])
    own = parse_autoregressive(
        [*CLIP, "--ar_model_dir", str(tmp_path / "mine"), "--model", "Cosmos-Predict1-4B"]
    )
    assert own.setup.nemo_checkpoint == tmp_path / "mine"


def test_every_released_offload_flag_parks_its_models() -> None:
    for flag, stage in (
        ("guardrail_models", "guardrails"),
        ("diffusion_decoder", "diffusion_decoder"),
        ("ar_model", "token_generation"),
        ("tokenizer", "tokenizer"),
    ):
        assert parse_autoregressive([*CLIP, f"--offload_{flag}"]).setup.offload == {stage}
    everything = parse_autoregressive([*CLIP, "--offload", "all"]).setup.offload
    assert everything == {"tokenizer", "token_generation", "diffusion_decoder", "guardrails"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "--input_image_or_video_path is missing"),
        ((*CLIP, "--batch_input_path", "b.jsonl"), "has no effect beside --batch_input_path"),
        ((*CLIP, "--batch_size", "4"), "--batch_size is for the videos of a batch"),
        ((*CLIP, "--replicas", "2"), "--replicas is for the videos of a batch"),
        ((*CLIP, "--disable_diffusion_decoder", "--num_steps", "5"), "--num_steps has no effect beside"),
        ((*CLIP, "--disable_guardrail", "--guardrail_dir", "g"), "--guardrail_dir has no effect beside"),
        ((*CLIP, "--ar_model_dir", "Cosmos-Predict1-7B-Text2World"), "run it with inference/text2world.py"),
        ((*CLIP, "--prompt_upsampler_dir", "p"), "unrecognized"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    argv: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((RequestError, SystemExit)) as caught:
        parse_autoregressive(argv)
    assert says in str(caught.value) + capsys.readouterr().err


def test_a_nano_model_makes_its_frames_without_a_diffusion_decoder() -> None:
    asked = parse_autoregressive([*CLIP, "--model", NANO])
    assert not asked.setup.decodes_by_diffusion
    assert (asked.request.height, asked.request.width, asked.request.fps) == (128, 128, 24)
    assert parse_autoregressive([*CLIP, "--model", NANO, "--disable_diffusion_decoder"]).setup == asked.setup
    assert parse_autoregressive([*CLIP, "--model", NANO, "--offload", "all"]).setup.offload


@pytest.mark.parametrize(
    "flags",
    [
        ("--num_steps", "20"),
        ("--guidance", "0"),
        ("--sampler", "RES"),
        ("--diffusion_decoder_dir", "decoder"),
        ("--tokenizer_dir", "tokenizer"),
        ("--offload_diffusion_decoder",),
    ],
)
def test_a_nano_model_refuses_flags_of_the_decoder_it_lacks(flags: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=f"{NANO} comes without a diffusion decoder, and {flags[0]} is"):
        parse_autoregressive([*CLIP, "--model", NANO, *flags])


def test_other_doors_send_the_model_here() -> None:
    from cosmos_nemo.cli import parse_text2world

    with pytest.raises(RequestError, match=r"an autoregressive model: run it with inference/base\.py"):
        parse_text2world(["--prompt", "x", "--diffusion_transformer_dir", "Cosmos-Predict1-4B"])
