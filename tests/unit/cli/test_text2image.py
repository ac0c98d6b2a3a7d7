from pathlib import Path

import pytest

from cosmos_nemo.catalog import find_card
from cosmos_nemo.cli import parse_general, parse_text2image, parse_text2world, parse_video2world
from cosmos_nemo.cli.invocation import Batch
from cosmos_nemo.request import RequestError, Setup, Text2ImageRequest, validate_request

TWO, FOURTEEN = (f"Cosmos-Predict2-{size}-Text2Image" for size in ("2B", "14B"))
PROMPT = ["--prompt", "a red ball"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_those_of_the_released_script() -> None:
    invocation = parse_text2image(PROMPT)
    assert invocation.setup == Setup(model=TWO)
    assert invocation.request == Text2ImageRequest(
        prompt="a red ball",
        negative_prompt="",
        height=768,
        width=1360,
        num_frames=1,
        fps=16,
        num_steps=35,
        guidance=4.0,
        sampler="RES",
        seed=0,
        video_path=Path("output/generated_image.jpg"),
    )
    validate_request(invocation.request, find_card(TWO))


def test_the_released_flags_mean_what_they_meant() -> None:
    argv = [*PROMPT, "--model_size", "14B", "--dit_path", "mine/model.pt", "--load_ema", "--seed", "3"]
    argv += ["--negative_prompt", "dull", "--save_path", "a/b.png", "--disable_guardrail"]
    invocation = parse_text2image([*argv, "--offload_guardrail"])
    assert invocation.setup == Setup(
        model=FOURTEEN,
        nemo_checkpoint=Path("mine/model.pt"),
        averaged=True,
        guardrails=False,
        offload=frozenset({"guardrails"}),
    )
    request = invocation.request
    assert (request.seed, request.negative_prompt) == (3, "dull")
    assert request.video_path == Path("a/b.png")


@pytest.mark.parametrize(
    ("ratio", "width", "height"),
    [
        *(("1:1", 1024, 1024), ("4:3", 1168, 880), ("3:4", 880, 1168)),
        *(("16:9", 1360, 768), ("9:16", 768, 1360)),
    ],
)
def test_a_ratio_is_a_size_that_the_weights_were_trained_for(ratio: str, width: int, height: int) -> None:
    request = parse_text2image([*PROMPT, "--aspect_ratio", ratio]).request
    assert (request.width, request.height) == (width, height)
    validate_request(request, find_card(TWO))


def test_flags_of_our_own_arrive(tmp_path: Path) -> None:
    argv = [*PROMPT, "--height", "512", "--guidance", "2", "--num_steps", "4", "--sampler", "RES-2mid"]
    argv += ["--num_gpus", "2", "--cp_size", "2", "--offload", "denoise", "--offload_tokenizer", "--dry_run"]
    argv += ["--checkpoint_dir", str(tmp_path), "--tokenizer_dir", "t", "--guardrail_dir", "g"]
    invocation = parse_text2image([*argv, "--text_encoder_dir", "e", "--text_guard_dir", "l"])
    request, setup = invocation.request, invocation.setup
    assert (request.height, request.width, request.guidance, request.num_steps) == (512, 1360, 2.0, 4)
    assert (request.sampler, setup.num_devices, setup.cp_size) == ("RES-2mid", 2, 2)
    assert setup.offload == {"denoise", "tokenizer"}
    assert (setup.assets_dir, setup.tokenizer_dir, setup.text_encoder_dir) == (
        *(tmp_path, Path("t"), Path("e")),
    )
    assert (setup.guardrail_dir, setup.text_guard_dir, setup.upsamples) == (Path("g"), Path("l"), False)
    assert invocation.dry_run


def test_the_default_checkpoint_folder_may_be_missing(tmp_path: Path) -> None:
    assert parse_text2image(PROMPT).setup.assets_dir is None
    (tmp_path / "checkpoints").mkdir()
    assert parse_text2image(PROMPT).setup.assets_dir == Path("checkpoints")


def test_the_entries_of_a_batch_say_where_their_images_go() -> None:
    invocation = parse_text2image(["--batch_input_json", "b.json", "--replicas", "2"])
    assert invocation.batch == Batch(path=Path("b.json"), folder=Path())
    assert invocation.setup.replicas == 2


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--prompt is missing. Describe what to make, or pass --batch_input_path FILE"),
        ([*PROMPT, "--batch_input_json", "b"], "--prompt has no effect beside --batch_input_path"),
        (["--batch_input_json", "b", "--save_path", "a.png"], "--save_path names one image"),
        ([*PROMPT, "--replicas", "2"], "--replicas shares the videos of a batch"),
        (
            [*PROMPT, "--aspect_ratio", "1:1", "--height", "64"],
            "--height has no effect beside --aspect_ratio",
        ),
        ([*PROMPT, "--aspect_ratio", "1:1", "--width", "64"], "--width has no effect beside --aspect_ratio"),
        ([*PROMPT, "--disable_guardrail", "--guardrail_dir", "g"], "--guardrail_dir has no effect beside"),
        ([*PROMPT, "--video_save_name", "a"], "text2image.py has --save_path instead of --video_save_name"),
        ([*PROMPT, "--model", TWO], "text2image.py has --model_size instead of --model"),
        ([*PROMPT, "--num_devices", "2"], "text2image.py has --num_gpus instead of --num_devices"),
        ([*PROMPT, "--diffusion_transformer_dir", "d"], "text2image.py has --dit_path instead of"),
        ([*PROMPT, "--num_input_frames", "1"], "--num_input_frames is for"),
    ],
)
def test_what_has_no_effect_or_another_name_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_text2image(flags)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        *(["--model_size", "0.6B"], ["--aspect_ratio", "2:1"], ["--num_video_frames", "5"], ["--fps", "16"]),
        *(["--distill_steps", "4"], ["--use_cuda_graphs"], ["--offload_prompt_upsampler"]),
        ["--disable_prompt_upsampler"],
    ],
    ids=str,
)
def test_what_is_not_built_or_not_for_images_is_no_flag(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_text2image([*PROMPT, *flags])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("path", "fits"), [("a.jpg", True), ("a.JPEG", True), ("a.png", True), ("a.mp4", False), ("a", False)]
)
def test_an_image_has_the_suffix_of_one(path: str, fits: bool) -> None:
    request = parse_text2image([*PROMPT, "--save_path", path]).request
    if fits:
        validate_request(request, find_card(TWO))
        return
    with pytest.raises(RequestError, match=r"must end in \.jpg or \.jpeg or \.png, e\.g\. a.*/image\.jpg"):
        validate_request(request, find_card(TWO))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--height", "520"], "--height 520 does not fit"),
        (["--width", "1936"], "--width 1936 does not fit"),
        (["--prompt", " "], "Describe the image to make"),
        (["--seed", "-1"], "--seed -1 must lie between"),
    ],
)
def test_what_the_model_cannot_make_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        validate_request(parse_text2image([*PROMPT, *flags]).request, find_card(TWO))
    assert says in str(caught.value)


def test_the_other_doors_name_this_one_and_their_own_flags() -> None:
    given = ["--input_image_or_video_path", "a.png"]
    for parse, argv, says in (
        (parse_general, [*PROMPT, "--model", TWO], "run it with inference/text2image.py"),
        (
            parse_video2world,
            [*given, "--diffusion_transformer_dir", TWO],
            "run it with inference/text2image.py",
        ),
        (
            parse_text2world,
            [*PROMPT, "--model_size", "2B"],
            "text2world.py has --model instead of --model_size",
        ),
        (parse_video2world, [*given, "--save_path", "a.mp4"], "instead of --save_path"),
        (parse_text2world, [*PROMPT, "--aspect_ratio", "1:1"], "(here: --height and --width)"),
    ):
        with pytest.raises(RequestError) as caught:
            parse(argv)
        assert says in str(caught.value)
