from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosmos_nemo.catalog import CARDS, CatalogError
from cosmos_nemo.cli import parse_video2world
from cosmos_nemo.cli.invocation import Batch, Invocation
from cosmos_nemo.request import OFFLOADABLE, RequestError, Setup, Video2WorldRequest, validate_request
from tests.doors.commands import BUS_PROMPT, COMMANDS, NEGATIVE_PROMPT, SHORT_BUS_PROMPT

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


TWO, FOURTEEN2 = "Cosmos-Predict2-2B-Video2World", "Cosmos-Predict2-14B-Video2World"
BUS = Path("assets/video2world/input0.jpg")


def _predict2(title: str) -> Invocation:
    """What a command of the document means: every word of it, and nothing else."""
    [command] = [c for c in COMMANDS if c.document == "003" and c.title == title]
    return parse_video2world(command.argv)


def _predict2_request(**own: Any) -> Video2WorldRequest:
    """The published defaults, in the size of 720p."""
    common = {
        "prompt": "",
        "height": 704,
        "width": 1280,
        "num_frames": 93,
        "fps": 16,
        "num_steps": 35,
        "guidance": 7.0,
        "sampler": "RES",
        "seed": 1,
        "video_path": Path("outputs/output.mp4"),
        "visual_input": Path("a.png"),
        "num_input_frames": 1,
        "num_overlap_frames": 5,
    }
    return Video2WorldRequest(**{**common, **own})


_SINGLE_480P = {
    "visual_input": BUS,
    "negative_prompt": NEGATIVE_PROMPT,
    "height": 432,
    "width": 768,
    "num_frames": 81,
}
_CHECKPOINTS = Path("checkpoints")
DOCUMENTED = {
    "example 1: single generation on the 2B model": (
        Setup(
            model=f"{TWO}-480p-16fps",
            assets_dir=_CHECKPOINTS,
            guardrails=False,
            offload=frozenset({"prompt_upsampler"}),
        ),
        _predict2_request(**_SINGLE_480P, prompt=BUS_PROMPT, video_path=Path("outputs/video2world_2b.mp4")),
    ),
    "example 1: single generation with the prompt upsampler": (
        Setup(
            model=f"{TWO}-480p-16fps",
            assets_dir=_CHECKPOINTS,
            upsamples=True,
            upsampler_dir=Path("Qwen/Qwen2.5-VL-7B-Instruct"),
            guardrails=False,
            offload=frozenset({"prompt_upsampler"}),
        ),
        _predict2_request(
            **_SINGLE_480P,
            prompt=SHORT_BUS_PROMPT,
            video_path=Path("outputs/video2world_2b_prompt_upsampled.mp4"),
        ),
    ),
    "example 2: single generation on the 14B model": (
        Setup(
            model=f"{FOURTEEN2}-480p-16fps",
            assets_dir=_CHECKPOINTS,
            guardrails=False,
            offload=frozenset({"prompt_upsampler"}),
        ),
        _predict2_request(
            **_SINGLE_480P, prompt=SHORT_BUS_PROMPT, video_path=Path("outputs/video2world_14b.mp4")
        ),
    ),
    "example 2: single generation on the 14B model with model offloading": (
        Setup(
            model=f"{FOURTEEN2}-720p-16fps",
            assets_dir=_CHECKPOINTS,
            upsamples=True,
            offload=frozenset(OFFLOADABLE),
        ),
        _predict2_request(
            visual_input=Path("assets/diffusion/video2world_input0.jpg"),
            video_path=Path("outputs/diffusion-video2world-14b.mp4"),
        ),
    ),
    "example 3: single generation with multi-GPU inference": (
        Setup(
            model=f"{TWO}-720p-16fps",
            assets_dir=_CHECKPOINTS,
            upsamples=True,
            num_devices=8,
            offload=frozenset({"prompt_upsampler"}),
        ),
        _predict2_request(
            visual_input=Path("assets/diffusion/video2world_input0.jpg"),
            video_path=Path("outputs/diffusion-video2world-2b.mp4"),
        ),
    ),
    "example 4: batch generation": (
        Setup(
            model=f"{TWO}-720p-16fps",
            assets_dir=_CHECKPOINTS,
            upsamples=True,
            offload=frozenset({"prompt_upsampler"}),
        ),
        _predict2_request(
            visual_input=Path(),
            num_input_frames=5,
            video_path=Path("diffusion-video2world-2b-batch/output.mp4"),
        ),
    ),
    "example 5: batch generation without prompt upsampler": (
        Setup(model=f"{TWO}-720p-16fps", assets_dir=_CHECKPOINTS),
        _predict2_request(
            visual_input=Path(),
            num_input_frames=5,
            video_path=Path("diffusion-video2world-2b-batch-wo-ps/output.mp4"),
        ),
    ),
}
_BATCHES = {
    "example 4: batch generation": ("video2world_ps.jsonl", "diffusion-video2world-2b-batch"),
    "example 5: batch generation without prompt upsampler": (
        *("video2world_wo_ps.jsonl", "diffusion-video2world-2b-batch-wo-ps"),
    ),
}


@pytest.mark.parametrize("title", DOCUMENTED)
def test_a_command_of_the_document_means_what_it_says(title: str) -> None:
    setup, request = DOCUMENTED[title]
    invocation = _predict2(title)
    assert invocation.setup == setup
    assert invocation.request == request
    assert not invocation.dry_run
    if title in _BATCHES:
        name, folder = _BATCHES[title]
        path = Path("assets/diffusion/batch_inputs", name)
        assert invocation.batch == Batch(path=path, folder=Path(folder))
    else:
        assert invocation.batch is None


def test_no_generation_of_the_document_is_left_out() -> None:
    others = {"download", "help"}
    assert {c.title for c in COMMANDS if c.document == "003"} == DOCUMENTED.keys() | others


def test_the_nine_input_frames_of_the_document_are_told_to_be_five() -> None:
    (remark,) = _predict2("example 4: batch generation").remarks
    assert "--num_input_frames 9 is taken for 5" in remark
    assert parse_video2world([*INPUT, "--num_input_frames", "9"]).remarks == ()
    assert _predict2("example 1: single generation on the 2B model").remarks == ()


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        ([], "-720p-16fps"),
        (["--height", "432", "--width", "768"], "-480p-16fps"),
        (["--height", "480", "--width", "480"], "-480p-16fps"),
        (["--height", "480", "--width", "640"], "-480p-16fps"),
        (["--height", "768", "--width", "432"], "-480p-16fps"),
        (["--height", "704", "--width", "960"], "-720p-16fps"),
        (["--height", "960", "--width", "960"], "-720p-16fps"),
        (["--height", "1280", "--width", "704"], "-720p-16fps"),
        (["--height", "704"], "-720p-16fps"),
        (["--fps", "10"], "-720p-10fps"),
        (["--fps", "10", "--height", "432", "--width", "768"], "-480p-10fps"),
        (["--fps", "24"], "-720p-16fps"),
        (["--height", "64", "--width", "96", "--fps", "12"], "-480p-10fps"),
    ],
)
def test_the_network_nearest_to_the_size_asked_for_is_taken(flags: list[str], variant: str) -> None:
    invocation = parse_video2world([*INPUT, "--diffusion_transformer_dir", TWO, *flags])
    assert invocation.setup.model == TWO + variant
    assert invocation.setup.nemo_checkpoint is None
    frames, fps = {"10fps": (61, 10), "16fps": (93, 16)}[variant[-5:]]
    assert invocation.request.num_frames == frames
    assert invocation.request.fps == (24 if "24" in flags else 12 if "12" in flags else fps)


def _touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


SMALL_SIZE = ["--height", "432", "--width", "768"]


@pytest.mark.parametrize(
    "checkpoint_dir", [[], ["--checkpoint_dir", "checkpoints"], ["--checkpoint_dir", "."]]
)
def test_a_folder_with_model_pt_holds_one_network_for_every_size(checkpoint_dir: list[str]) -> None:
    _touch(f"checkpoints/{TWO}/model.pt", f"{TWO}/model.pt", f"checkpoints/{TWO}/model-480p-16fps.pt")
    flags = [*INPUT, *checkpoint_dir, "--diffusion_transformer_dir", TWO]
    for size in ([], SMALL_SIZE, ["--fps", "10"]):
        invocation = parse_video2world([*flags, *size])
        assert invocation.setup.model == TWO
        assert invocation.setup.nemo_checkpoint == Path(TWO)
    assert parse_video2world([*flags, *SMALL_SIZE]).request.num_frames == 93


def test_of_several_networks_in_a_folder_the_nearest_to_the_size_is_taken() -> None:
    _touch(f"checkpoints/{TWO}/model-720p-16fps.pt", f"checkpoints/{TWO}/model-480p-16fps.pt")
    for size, variant in (([], "720p"), (SMALL_SIZE, "480p")):
        invocation = parse_video2world([*INPUT, "--diffusion_transformer_dir", TWO, *size])
        assert invocation.setup.model == f"{TWO}-{variant}-16fps"
        assert invocation.setup.nemo_checkpoint == Path(TWO)
        assert invocation.remarks == ()


def test_a_network_of_another_size_is_taken_with_a_remark_if_it_is_the_only_one() -> None:
    _touch(f"checkpoints/{TWO}/model-720p-10fps.pt")
    invocation = parse_video2world([*INPUT, "--diffusion_transformer_dir", TWO, *SMALL_SIZE])
    assert invocation.setup.model == f"{TWO}-720p-10fps"
    assert invocation.remarks == (f"model-480p-16fps.pt is not here: taking {TWO}-720p-10fps",)
    request = invocation.request
    assert (request.num_frames, request.fps, request.height, request.width) == (61, 10, 432, 768)


def test_a_file_that_is_no_network_of_the_cards_is_not_taken() -> None:
    """Those with sparse attention are other networks."""
    _touch(f"checkpoints/{TWO}/model-720p-10fps-natten.pt")
    invocation = parse_video2world([*INPUT, "--diffusion_transformer_dir", TWO])
    assert invocation.setup.model == f"{TWO}-720p-16fps"


def test_a_network_that_is_named_is_taken_for_any_size() -> None:
    _touch(f"checkpoints/{TWO}/model-720p-10fps.pt")
    named = f"{TWO}-720p-10fps"
    for flags in (
        ["--model", named, "--diffusion_transformer_dir", TWO],
        ["--diffusion_transformer_dir", named],
    ):
        request = parse_video2world([*INPUT, *flags, *SMALL_SIZE])
        assert request.setup.model == named
        assert (request.request.num_frames, request.request.fps, request.request.height) == (61, 10, 432)


@pytest.mark.parametrize(
    ("name", "model", "frames"),
    [("model-480p-10fps.pt", f"{TWO}-480p-10fps", 61), ("own.pt", TWO, 93), ("model.pt", TWO, 93)],
)
def test_a_file_that_is_named_is_the_network_that_its_name_tells(name: str, model: str, frames: int) -> None:
    _touch(f"checkpoints/{TWO}/{name}")
    flags = ["--diffusion_transformer_dir", f"{TWO}/{name}"]
    invocation = parse_video2world([*INPUT, *flags, "--height", "704", "--width", "1280"])
    assert invocation.setup.nemo_checkpoint == Path(flags[1])
    assert (invocation.setup.model, invocation.request.num_frames) == (model, frames)


def test_a_checkpoint_of_another_layout_keeps_the_bare_name() -> None:
    _touch(f"checkpoints/{TWO}/weights/metadata.json")
    invocation = parse_video2world([*INPUT, "--diffusion_transformer_dir", TWO, "--fps", "10"])
    assert (invocation.setup.model, invocation.request.num_frames) == (TWO, 93)


def test_of_those_that_are_there_the_nearest_is_taken() -> None:
    for name in ("model-480p-10fps.pt", "model-720p-10fps.pt"):
        _touch(f"checkpoints/{TWO}/{name}")
    named = ["--diffusion_transformer_dir", TWO]
    large = parse_video2world([*INPUT, *named])
    assert large.setup.model == f"{TWO}-720p-10fps"
    assert large.remarks == (f"model-720p-16fps.pt is not here: taking {TWO}-720p-10fps",)
    assert parse_video2world([*INPUT, *named, *SMALL_SIZE]).setup.model == f"{TWO}-480p-10fps"


def test_a_model_alone_names_its_own_folder() -> None:
    invocation = parse_video2world([*INPUT, "--model", f"{TWO}-480p-10fps"])
    assert invocation.setup.model == f"{TWO}-480p-10fps" and invocation.setup.nemo_checkpoint is None


def test_no_overlap_at_all_is_refused_and_not_taken_for_the_default() -> None:
    for name in (SEVEN, TWO):
        flags = ["--diffusion_transformer_dir", name, "--num_overlap_frames", "0"]
        invocation = parse_video2world([*INPUT, *flags])
        with pytest.raises(RequestError, match=r"--num_overlap_frames 0 must be 1 or [59] for"):
            validate_request(invocation.request, CARDS[invocation.setup.model], prompt_is_made=True)


def test_the_average_is_taken_only_if_it_is_asked_for_and_only_of_predict2() -> None:
    flags = [*INPUT, "--diffusion_transformer_dir"]
    assert not parse_video2world([*flags, TWO]).setup.averaged
    assert parse_video2world([*flags, TWO, "--load_ema"]).setup.averaged
    for name in (SEVEN, "Cosmos-Predict1-7B-Video2World_post-trained"):
        with pytest.raises(RequestError, match=f"--load_ema is for Predict2's files, not for {name}"):
            parse_video2world([*flags, name, "--load_ema"])
