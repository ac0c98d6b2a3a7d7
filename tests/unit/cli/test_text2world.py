from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.cli import parse_text2world
from cosmos_nemo.cli.invocation import Batch, Invocation
from cosmos_nemo.request import OFFLOADABLE, RequestError, Setup, Text2WorldRequest
from tests.doors.commands import COMMANDS, WAREHOUSE_PROMPT


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SEVEN, FOURTEEN = "Cosmos-Predict1-7B-Text2World", "Cosmos-Predict1-14B-Text2World"
SETUP = Setup(
    model=SEVEN,
    assets_dir=Path("checkpoints"),
    upsamples=True,
    offload=frozenset({"prompt_upsampler"}),
)
REQUEST = Text2WorldRequest(prompt=WAREHOUSE_PROMPT, sampler="EDM")
BATCH = Batch(
    path=Path("assets/diffusion/batch_inputs/text2world.jsonl"), folder=Path("diffusion-text2world-7b-batch")
)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (
            1,
            Invocation(
                setup=SETUP, request=replace(REQUEST, video_path=Path("outputs/diffusion-text2world-7b.mp4"))
            ),
        ),
        (
            2,
            Invocation(
                setup=replace(SETUP, model=FOURTEEN, offload=frozenset(OFFLOADABLE)),
                request=replace(REQUEST, video_path=Path("outputs/diffusion-text2world-14b.mp4")),
            ),
        ),
        (
            3,
            Invocation(
                setup=replace(SETUP, num_devices=8),
                request=replace(REQUEST, video_path=Path("outputs/diffusion-text2world-7b-8gpu.mp4")),
            ),
        ),
        (
            4,
            Invocation(
                setup=SETUP,
                request=replace(
                    REQUEST, prompt="", video_path=Path("diffusion-text2world-7b-batch/output.mp4")
                ),
                batch=BATCH,
            ),
        ),
    ],
)
def test_the_documents_commands_mean_what_they_say(number: int, expected: Invocation) -> None:
    (command,) = [c for c in COMMANDS if c.document == "000" and c.title.startswith(f"example {number}:")]
    assert parse_text2world(command.argv) == expected


def test_the_defaults_are_those_of_the_published_table() -> None:
    invocation = parse_text2world(["--prompt", "a robot"])
    assert invocation.setup == Setup(model=SEVEN, upsamples=True)
    assert invocation.request == Text2WorldRequest(
        prompt="a robot",
        height=704,
        width=1280,
        num_frames=121,
        fps=24,
        num_steps=35,
        guidance=7.0,
        sampler="EDM",
        seed=1,
        video_path=Path("outputs/output.mp4"),
    )


def test_the_default_folder_of_checkpoints_counts_if_it_is_there(tmp_path: Path) -> None:
    assert parse_text2world(["--prompt", "x"]).setup.assets_dir is None
    (tmp_path / "checkpoints").mkdir()
    assert parse_text2world(["--prompt", "x"]).setup.assets_dir == Path("checkpoints")
    assert parse_text2world(["--prompt", "x", "--checkpoint_dir", "c"]).setup.assets_dir == Path("c")


def test_a_folder_of_ones_own_takes_the_sizes_of_the_named_model(tmp_path: Path) -> None:
    flags = ["--prompt", "x", "--checkpoint_dir", "c", "--diffusion_transformer_dir", "mine/run7"]
    setup = parse_text2world([*flags, "--model", FOURTEEN]).setup
    assert (setup.model, setup.nemo_checkpoint) == (FOURTEEN, Path("mine/run7"))
    said = r"--diffusion_transformer_dir mine/run7 is no model's name: add --model NAME"
    with pytest.raises(CatalogError, match=said):
        parse_text2world(flags)


def test_a_misspelt_folder_is_answered_with_the_nearest_models_and_its_own_flag() -> None:
    with pytest.raises(CatalogError, match=rf"Nearest: .*{FOURTEEN}") as caught:
        parse_text2world(["--prompt", "x", "--diffusion_transformer_dir", "Cosmos-Predict1-14B-Text2Wrld"])
    assert "--model Cosmos" not in str(caught.value)
    with pytest.raises(CatalogError, match="--model 14B is unknown"):
        parse_text2world(["--prompt", "x", "--model", "14B"])


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors", "transformer.bin"])
def test_a_file_is_of_the_model_that_its_folder_is_called_after(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "c" / FOURTEEN
    folder.mkdir(parents=True)
    (folder / file).touch()
    for given in (f"{FOURTEEN}/{file}", str(folder / file)):
        setup = parse_text2world(
            ["--prompt", "x", "--checkpoint_dir", "c", "--diffusion_transformer_dir", given]
        ).setup
        assert (setup.model, setup.nemo_checkpoint) == (FOURTEEN, Path(given))


def test_a_cosmos_1_model_keeps_its_own_sampler_and_its_folder_may_hold_model_pt(tmp_path: Path) -> None:
    name = "Cosmos-1.0-Diffusion-7B-Text2World"
    flags = ["--prompt", "x", "--checkpoint_dir", "c", "--diffusion_transformer_dir", name]
    invocation = parse_text2world(flags)
    assert (invocation.request.sampler, invocation.setup.nemo_checkpoint) == ("RES", None)
    (tmp_path / "c" / name).mkdir(parents=True)
    assert parse_text2world(flags).setup.nemo_checkpoint == Path(name)
    assert parse_text2world([*flags, "--sampler", "EDM"]).request.sampler == "EDM"


@pytest.mark.parametrize(("name", "file"), [("a", "a.mp4"), ("v1.5", "v1.5.mp4"), ("b.npy", "b.npy")])
def test_the_name_of_the_video_needs_no_ending(name: str, file: str) -> None:
    request = parse_text2world(["--prompt", "x", "--video_save_name", name]).request
    assert request.video_path == Path("outputs") / file


def test_the_folders_of_the_other_models_count() -> None:
    """Upstream read --tokenizer_dir and then used another folder."""
    setup = parse_text2world(
        [
            *(
                "--prompt",
                "x",
                "--tokenizer_dir",
                "t",
                "--prompt_upsampler_dir",
                "u",
                "--text_encoder_dir",
                "e",
            ),
            *("--guardrail_dir", "g", "--text_guard_dir", "l", "--word_limit_to_skip_upsampler", "5"),
        ]
    ).setup
    paths = (setup.tokenizer_dir, setup.upsampler_dir, setup.text_encoder_dir, setup.guardrail_dir)
    assert (*paths, setup.text_guard_dir) == tuple(map(Path, "tuegl"))
    assert setup.word_limit == 5


def test_whatever_is_disabled_all_may_be_offloaded() -> None:
    flags = ["--prompt", "x", "--disable_guardrail", "--disable_prompt_upsampler", "--offload", "all"]
    assert parse_text2world(flags).setup.offload == frozenset(OFFLOADABLE)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--prompt is missing"),
        (
            ["--prompt", "x", "--disable_prompt_upsampler", "--prompt_upsampler_dir", "u"],
            "--prompt_upsampler_dir",
        ),
        (["--batch_input_path", "b", "--video_save_name", "v"], "--video_save_name names one video"),
        (["--prompt", "x", "--batch_input_path", "b"], "--prompt has no effect"),
        (["--prompt", "x", "--replicas", "2"], "--replicas"),
        (["--prompt", "x", "--num_steps", "2.5"], "--num_steps 2.5"),
        (
            ["--prompt", "x", "--disable_guardrail", "--offload_guardrail_models"],
            "--offload_guardrail_models has no effect beside --disable_guardrail. Pass one of them",
        ),
        (
            ["--prompt", "x", "--disable_prompt_upsampler", "--offload_prompt_upsampler"],
            "--offload_prompt_upsampler has no effect beside --disable_prompt_upsampler. Pass one of them",
        ),
    ],
)
def test_a_flag_without_effect_or_sense_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_text2world(flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--num_input_frames", "9"],
            r"--num_input_frames is for video2world\.py and world_interpolator\.py",
        ),
        (
            ["--diffusion_transformer_dir", "Cosmos-Predict1-7B-Video2World"],
            r"run it with inference/video2wo",
        ),
        (
            ["--model", "Cosmos-Predict1-7B-WorldInterpolator"],
            r"run it with inference/world_interpolator\.py",
        ),
    ],
)
def test_flags_and_models_of_another_door_are_sent_there(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        parse_text2world(["--prompt", "x", *flags])
