"""inference/text2image.py on stand-ins: images, batches, ranks, failures; a video that goes on from one."""

import argparse
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from cosmos_nemo.catalog import WanTokenizerShape, find_card
from cosmos_nemo.cli import text2image
from cosmos_nemo.stages.media import file_digest
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from cosmos_nemo.tools import convert
from cosmos_nemo.tools.standin import standin_card, write_standin
from cosmos_nemo.tools.standin_video_guard import write_video_guard
from tests.doors.instant import help_of
from tests.doors.test_general import Ended, _load
from tests.parallel import launcher

ROOT = Path(__file__).parents[2]
TEXT2IMAGE, VIDEO2WORLD = ROOT / "inference/text2image.py", ROOT / "inference/video2world.py"
TWO, FOURTEEN = (f"Cosmos-Predict2-{size}-Text2Image" for size in ("2B", "14B"))
VIDEO_TWO = "Cosmos-Predict2-2B-Video2World"
GUARDRAIL, TOKENIZER = "nvidia/Cosmos-Guardrail1", "Wan-AI/Wan2.1-T2V-1.3B"
SMALL = ["--height", "64", "--width", "96", "--num_steps", "2"]
PLAIN = ["--disable_guardrail"]
SINGLE = ["--prompt", "a red ball", *SMALL]
HARMFUL, FORBIDDEN = "a zorchblade", "a grobnik"
"""Prompts that the stand-ins' Llama Guard and word lists block."""

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text2image") / "checkpoints"
    write_standin([find_card(name) for name in (TWO, FOURTEEN, VIDEO_TWO)], folder, seed=0, layout="folder")
    return folder


@pytest.fixture
def here(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `checkpoints` in it."""
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "COSMOS_NEMO_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def own(checkpoints: Path, here: Path) -> Path:
    """A copy of the checkpoints, of hard links: a file that changes must be removed first."""
    (here / "checkpoints").unlink()
    return Path(shutil.copytree(checkpoints, here / "checkpoints", copy_function=os.link))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of prompts: loading the text encoder takes longer than making such images."""
    return tmp_path_factory.mktemp("texts")


@pytest.fixture
def run_here(here: Path, texts: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """A door's main in this process."""

    def run(*argv: str, door: Path = TEXT2IMAGE) -> Ended:
        capfd.readouterr()
        status = _load(door).main(list(argv), environ={"COSMOS_NEMO_CACHE": str(texts)})
        return Ended(status, *capfd.readouterr())

    return run


def _make(run_here: Run, name: str, *flags: str) -> numpy.ndarray:
    """The pixels [H, W, 3] of a run that must succeed, without a loss."""
    ended = run_here(*SINGLE, *PLAIN, *flags, "--save_path", f"{name}.png")
    assert ended.returncode == 0, ended.stderr
    return _pixels(Path(f"{name}.png"))


def _pixels(path: Path) -> numpy.ndarray:
    with Image.open(path) as image:
        return numpy.asarray(image).astype(int)


def _manifest(image: Path) -> dict[str, Any]:
    return json.loads(image.with_suffix(".json").read_text())  # type: ignore[no-any-return]


def test_a_stand_in_of_it_alone_is_all_that_it_needs(tmp_path: Path) -> None:
    write_standin([find_card(TWO)], tmp_path / "home", seed=0, layout="hub")
    assert {folder.name for folder in (tmp_path / "home/hub").iterdir()} == {
        f"models--{repository.replace('/', '--')}"
        for repository in (
            *(f"nvidia/{TWO}", TOKENIZER, "google-t5/t5-11b", GUARDRAIL),
            "meta-llama/Llama-Guard-3-8B",
        )
    }


@pytest.mark.parametrize(("size", "card"), [("2B", TWO), ("14B", FOURTEEN)])
def test_the_released_defaults_make_a_guarded_jpeg_with_its_prompt_and_manifest(
    run_here: Run, here: Path, size: str, card: str
) -> None:
    ended = run_here(*SINGLE, "--model_size", size)
    assert ended.returncode == 0, ended.stderr
    image = here / "output/generated_image.jpg"
    assert {path.name for path in image.parent.iterdir()} == {
        *("generated_image.jpg", "generated_image.json", "generated_image.txt")
    }
    with Image.open(image) as opened:
        assert (opened.format, opened.size) == ("JPEG", (96, 64))
    manifest = _manifest(image)
    assert manifest["model"] == card
    request = manifest["request"]
    assert (request["sampler"], request["guidance"], request["seed"]) == ("RES", 4.0, 0)
    assert (request["num_frames"], request["negative_prompt"]) == (1, "")
    assert manifest["prompt"] == request["prompt"] == image.with_suffix(".txt").read_text() == "a red ball"
    assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}
    assert (manifest["prompt_upsampler"], manifest["image_sha256"]) == ("off", file_digest(image))
    assert set(manifest["stages"]) == {*("text_guard", "text_encoder", "denoise", "tokenizer", "video_guard")}
    assert f"wrote {image.relative_to(here)}" in ended.stdout


def test_another_prompt_seed_size_or_guidance_makes_another_image(run_here: Run, here: Path) -> None:
    made = [
        _make(run_here, str(number), *flags)
        for number, flags in enumerate(
            (
                *([], [], ["--prompt", "a blue cube"], ["--negative_prompt", "a dull scene"]),
                *(["--seed", "1"], ["--guidance", "0"], ["--model_size", "14B"], ["--width", "112"]),
            )
        )
    ]
    assert numpy.array_equal(made[0], made[1])
    assert len({pixels.tobytes() for pixels in made}) == len(made) - 1
    assert made[-1].shape == (64, 112, 3)
    assert made[0].std() > 1


def test_the_image_is_the_decoded_latent_of_one_frame(
    run_here: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = []
    decode = WanTokenizerStage.decode

    def recorded(self: WanTokenizerStage, latent_BCTHW: torch.Tensor) -> torch.Tensor:
        assert self.parts == ("decoder",)
        latents.append(latent_BCTHW)
        return decode(self, latent_BCTHW)

    monkeypatch.setattr(WanTokenizerStage, "decode", recorded)
    made = _make(run_here, "a")
    [latent_BCTHW] = latents
    assert latent_BCTHW.shape == (1, 16, 1, 8, 12)
    shape = standin_card(find_card(TWO)).tokenizer
    assert isinstance(shape, WanTokenizerShape)
    tokenizer = WanTokenizerStage(
        shape=shape, folder=here / "checkpoints" / TOKENIZER, device=torch.device("cpu")
    )
    with torch.inference_mode(), tokenizer:
        assert numpy.array_equal(decode(tokenizer, latent_BCTHW)[0].numpy(), made)


def test_offloading_everything_changes_no_pixel(run_here: Run, here: Path) -> None:
    parked = ["--offload_tokenizer", "--offload_diffusion_transformer", "--offload_text_encoder_model"]
    assert numpy.array_equal(_make(run_here, "a"), _make(run_here, "b", *parked))
    guarded = run_here(*SINGLE, *parked, "--offload_guardrail", "--save_path", "c.png")
    assert guarded.returncode == 0, guarded.stderr
    assert numpy.array_equal(_pixels(here / "c.png"), _pixels(here / "a.png"))


@pytest.mark.parametrize(("prompt", "by"), [(HARMFUL, "Llama Guard"), (FORBIDDEN, "word list")])
def test_a_blocked_prompt_leaves_no_image(run_here: Run, here: Path, prompt: str, by: str) -> None:
    ended = run_here("--prompt", prompt, *SMALL)
    assert ended.returncode == 3, ended.stderr
    assert by in ended.stdout
    assert [path.name for path in (here / "output").iterdir()] == ["generated_image.blocked.json"]


def test_an_unsafe_image_is_blocked_and_one_with_faces_is_pixelated(run_here: Run, own: Path) -> None:
    for name, finds in (("violence", {"blocks": True}), ("faces", {"finds_face": True})):
        shutil.copytree(own / GUARDRAIL, name)
        for folder in ("video_content_safety_filter", "face_blur_filter"):
            shutil.rmtree(Path(name) / folder)
        write_video_guard(Path(name), seed=0, **finds)
    plain = _make(run_here, "plain")
    blocked = run_here(*SINGLE, "--guardrail_dir", "violence", "--save_path", "a.png")
    assert blocked.returncode == 3, blocked.stderr
    assert "frame 0 is Violence" in blocked.stdout
    assert Path("a.blocked.json").is_file() and not Path("a.png").exists()
    changed = run_here(*SINGLE, "--guardrail_dir", "faces", "--save_path", "b.png")
    assert changed.returncode == 0, changed.stderr
    assert _manifest(Path("b.png"))["guardrails"] == {"state": "on", "outcome": "faces blurred"}
    assert not numpy.array_equal(_pixels(Path("b.png")), plain)


ENTRIES = [
    {"prompt": "a red ball", "output_image": "out/ball.png"},
    {"prompt": "a cube"},
    {"prompt": FORBIDDEN, "output_image": "out/blocked.jpg"},
    {"prompt": "a hat", "output_image": "out/ball.jpg"},
    {"prompt": "a hat", "output_image": "out/hat.gif"},
    {"prompt": "a hat", "output_image": "taken.jpg"},
]


def test_a_batch_makes_what_it_can_and_goes_on_with_the_rest(run_here: Run, here: Path) -> None:
    (here / "taken.jpg").mkdir()
    (here / "b.json").write_text(json.dumps(ENTRIES))
    ended = run_here("--batch_input_json", "b.json", *SMALL)
    assert ended.returncode == 1, ended.stderr
    assert "2 images made, 0 were there, 1 blocked, 0 failed, 3 bad lines" in ended.stdout
    assert "--batch_input_json entry 4: out/ball.jpg and what lies beside it are those" in ended.stdout
    assert "entry 5: --save_path out/hat.gif must end in .jpg or .jpeg or .png" in ended.stdout
    assert "entry 6: --save_path taken.jpg is a folder" in ended.stdout
    assert {path.name for path in (here / "out").iterdir()} == {
        *("ball.png", "ball.txt", "ball.json", "blocked.blocked.json")
    }
    assert (here / "output_1.txt").read_text() == "a cube"
    assert numpy.array_equal(_pixels(here / "out/ball.png"), _make(run_here, "single"))
    (here / "out/ball.png").unlink()
    again = run_here("--batch_input_json", "b.json", *SMALL)
    assert "1 of 3 images are there already" in again.stdout
    assert "1 images made, 1 were there, 1 blocked, 0 failed, 3 bad lines" in again.stdout
    other = run_here("--batch_input_json", "b.json", *SMALL, "--seed", "5", "--dry_run")
    assert other.returncode == 0, other.stderr
    assert "of the 3 images are of other requests and will be replaced" in other.stdout


@pytest.mark.parametrize(
    ("num_ranks", "flags", "plan"),
    [
        (2, [], (2, 1, 1)),
        (2, ["--cfg_parallel", "off"], (1, 2, 1)),
        (3, [], (1, 3, 1)),
        (2, ["--tensor_parallel", "2"], (1, 1, 2)),
    ],
)
def test_any_number_of_ranks_makes_the_image_of_one(
    run_here: Run, here: Path, checkpoints: Path, num_ranks: int, flags: list[str], plan: tuple[int, int, int]
) -> None:
    one = _make(run_here, "one", "--height", "80")
    argv = [*SINGLE, *PLAIN, "--height", "80", "--checkpoint_dir", str(checkpoints), *flags]
    launcher.run_ranks(num_ranks, TEXT2IMAGE, *argv, "--save_path", str(here / "many.png"), timeout=120)
    assert _manifest(here / "many.png")["plan"] == {
        **dict(zip(("cfg", "cp", "tp"), plan, strict=True)),
        "replicas": 1,
    }
    assert _manifest(here / "many.png")["item"] == _manifest(here / "one.png")["item"]
    difference = abs(_pixels(here / "many.png") - one)
    assert difference.max() <= 1 and (difference != 0).mean() <= 0.002


def test_two_replicas_share_a_batch_whose_bad_entries_the_first_rank_alone_found(
    here: Path, checkpoints: Path
) -> None:
    (here / "taken.jpg").mkdir()
    entries = [{"prompt": p, "output_image": str(here / f"{p[-1]}.png")} for p in ("a", "a b", "a c")]
    entries.append({"prompt": "d", "output_image": str(here / "taken.jpg")})
    (here / "batch.json").write_text(json.dumps(entries))
    argv = [*SMALL, *PLAIN, "--batch_input_json", str(here / "batch.json"), "--replicas", "2"]
    ranks = launcher.wait_for(
        launcher.start_ranks(2, TEXT2IMAGE, *argv, "--checkpoint_dir", str(checkpoints)), timeout=120
    )
    assert [one.status for one in ranks] == [1, 1], ranks[0].err
    assert "3 images made, 0 were there, 0 blocked, 0 failed, 1 bad lines" in ranks[0].out
    assert {path.name for path in here.glob("*.png")} == {"a.png", "b.png", "c.png"}


def test_a_video_goes_on_from_an_image_that_was_made_for_it(run_here: Run, here: Path) -> None:
    """What the released text2world.py does in one process."""
    first = run_here(*SINGLE)
    assert first.returncode == 0, first.stderr
    flags = [
        "--diffusion_transformer_dir",
        VIDEO_TWO,
        "--num_video_frames",
        "5",
        "--video_save_name",
        "v.npy",
    ]
    image = "output/generated_image.jpg"
    second = run_here(*SINGLE, *flags, "--input_image_or_video_path", image, door=VIDEO2WORLD)
    assert second.returncode == 0, second.stderr
    assert numpy.load(here / "outputs/v.npy").shape == (5, 64, 96, 3)
    assert _manifest(here / "outputs/v.npy")["visual_input_sha256"] == _manifest(here / image)["image_sha256"]


def test_a_file_elsewhere_and_the_average_in_it_can_be_had(run_here: Run, own: Path) -> None:
    regular = _make(run_here, "a")
    content = torch.load(own / TWO / "model.pt")
    average = {
        name.replace("net.", "net_ema.", 1): values * 0.5 if values.ndim > 1 else values
        for name, values in content.items()
    }
    Path("mine").mkdir()
    torch.save({**content, **average}, "mine/model.pt")
    shutil.copy(own / TWO / "card.json", "mine")
    shutil.rmtree(own / TWO)
    assert numpy.array_equal(_make(run_here, "b", "--dit_path", "mine/model.pt"), regular)
    assert not numpy.array_equal(_make(run_here, "c", "--dit_path", "mine", "--load_ema"), regular)


def test_the_folders_of_nvidias_own_download_script_serve(run_here: Run, own: Path) -> None:
    made = _make(run_here, "a")
    (own / TWO).rename(own / "nvidia" / TWO)
    (own / TOKENIZER).rename(own / "nvidia" / TWO / "tokenizer")
    folders = ["--dit_path", f"nvidia/{TWO}", "--tokenizer_dir", f"nvidia/{TWO}/tokenizer"]
    assert numpy.array_equal(_make(run_here, "b", *folders), made)


@pytest.mark.parametrize("kind", ["nemo", "diffusers", "predict2"])
def test_a_converted_network_makes_the_same_image(
    run_here: Run, here: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    words = [str(here / "checkpoints" / TWO), str(here / kind), "--to", kind]
    assert convert.run(parser.parse_args(words)) == 0
    assert f"{TWO}, as {kind}" in capfd.readouterr().out
    assert numpy.array_equal(_make(run_here, "a", "--dit_path", kind), _make(run_here, "b"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dit_path", "nowhere.pt"], "--dit_path nowhere.pt does not exist"),
        (["--dit_path", VIDEO_TWO], "and a Text2Image network of 4 layers, width 128"),
        (["--checkpoint_dir", "nowhere"], "--checkpoint_dir nowhere is no folder"),
        (["--height", "40"], "--height 40 does not fit"),
        (["--save_path", "a.mp4"], "--save_path a.mp4 must end in .jpg or .jpeg or .png"),
        (["--save_path", "checkpoints"], "--save_path checkpoints must end in"),
        (["--load_ema"], "model.pt holds no moving average of its weights"),
        (["--batch_input_json", "none.json"], "--prompt has no effect beside --batch_input_json"),
        (["--num_gpus", "2"], "--num_gpus 2 is more than the 1 rank(s) started"),
    ],
)
def test_what_cannot_be_made_exits_2_with_a_sentence_in_the_names_of_this_door(
    run_here: Run, here: Path, flags: list[str], says: str
) -> None:
    ended = run_here(*SINGLE, *PLAIN, *flags)
    assert ended.returncode == 2, ended.stderr
    assert says in ended.stderr and "Traceback" not in ended.stderr
    known = {flag for action in text2image._parser()._actions for flag in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z0-9_]*", ended.stderr)) <= known | {"--nproc_per_node"}
    assert not (here / "output").exists()


def test_weights_that_are_nowhere_are_named_with_the_command_that_fetches_them(
    run_here: Run, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(own / FOURTEEN)
    ended = run_here(*SINGLE, "--model_size", "14B")
    assert ended.returncode == 2
    assert (
        "download/diffusion.py --model_sizes 14B --family predict2 --model_types Text2Image" in ended.stderr
    )
    assert not Path("output").exists()


def test_a_dry_run_tells_size_calls_and_memory(run_here: Run, here: Path) -> None:
    ended = run_here("--prompt", "a", "--aspect_ratio", "9:16", "--num_gpus", "4", "--dry_run")
    assert ended.returncode == 0, ended.stderr
    assert f"{TWO}: an image of 768 x 1360, seed 0, to output/generated_image.jpg" in ended.stdout
    assert "latent 1 x 170 x 96, 4,080 tokens; RES, 35 steps, guidance 4: 72 network calls" in ended.stdout
    assert "4 rank(s): guidance branches 2 x context parallel 2" in ended.stdout
    assert "upsampler" not in ended.stdout.rpartition("weights + work")[2]
    assert "was trained on" not in ended.stdout
    assert not (here / "output").exists()


def test_the_help_is_instant_and_names_no_flag_of_videos() -> None:
    found = help_of(str(TEXT2IMAGE))
    assert "--aspect_ratio" in found and "--batch_input_json" in found
    assert not re.search(r"--(fps|num_video_frames|offload_prompt_upsampler|prompt_upsampler_dir)\b", found)
