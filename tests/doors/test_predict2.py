"""inference/video2world.py with Predict2's models: the document's commands on stand-ins, ranks, failures."""

import argparse
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import imageio
import numpy
import pytest
import torch
from PIL import Image

from cosmos_nemo.catalog import CARDS, WanTokenizerShape, find_card
from cosmos_nemo.cli import general
from cosmos_nemo.stages.media import file_digest
from cosmos_nemo.stages.prompt_refiner import PromptRefiner
from cosmos_nemo.stages.visual_input import cropped, read_last_frames, unit_pixels
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from cosmos_nemo.tools import convert, inspect
from cosmos_nemo.tools.standin import standin_card, write_standin
from cosmos_nemo.tools.standin_refiner import SENTENCE, write_refiner
from tests.doors import commands
from tests.doors.test_general import Ended, _load
from tests.parallel import launcher

ROOT = Path(__file__).parents[2]
VIDEO2WORLD, GENERAL = ROOT / "inference/video2world.py", ROOT / "inference/general.py"
TWO, FOURTEEN = (f"Cosmos-Predict2-{size}-Video2World" for size in ("2B", "14B"))
SEVEN = "Cosmos-Predict1-7B-Video2World"
REFINER, OTHER_REFINER = "nvidia/Cosmos-Reason1-7B", "Qwen/Qwen2.5-VL-7B-Instruct"
TOKENIZER = "Wan-AI/Wan2.1-T2V-1.3B"
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "2"]
IMAGE, CLIP = "assets/video2world/input0.jpg", "assets/diffusion/video2world_input1.mp4"
PLAIN = ["--disable_prompt_upsampler", "--disable_guardrail"]
MODEL = ["--diffusion_transformer_dir", TWO]
SINGLE = [*MODEL, "--input_image_or_video_path", IMAGE, "--prompt", "a red ball", *PLAIN, *SMALL]
HARMFUL, FORBIDDEN = "a zorchblade", "a grobnik"
"""Prompts that the stand-ins' Llama Guard and word lists block."""
REFINED = "".join(SENTENCE).replace("Ġ", " ")

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict2") / "checkpoints"
    write_standin([find_card(TWO), find_card(FOURTEEN)], folder, seed=0, layout="folder")
    write_refiner(folder / OTHER_REFINER, seed=1)
    return folder


@pytest.fixture
def here(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `checkpoints` and the documents' assets in it."""
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
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
    """A cache of prompts: loading the text encoder takes longer than making such videos."""
    return tmp_path_factory.mktemp("texts")


@pytest.fixture
def run_here(here: Path, texts: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """The door's main in this process."""

    def run(*argv: str) -> Ended:
        capfd.readouterr()
        status = _load(VIDEO2WORLD).main(list(argv), environ={"COSMOS_NEMO_CACHE": str(texts)})
        return Ended(status, *capfd.readouterr())

    return run


def _make(run_here: Run, name: str, *flags: str) -> numpy.ndarray:
    """The frames [T, H, W, 3] of a run that must succeed, without an encoding."""
    ended = run_here(*SINGLE, *flags, "--video_save_name", f"{name}.npy")
    assert ended.returncode == 0, ended.stderr
    return _frames(Path("outputs") / f"{name}.npy")


def _frames(path: Path) -> numpy.ndarray:
    return numpy.load(path).astype(int)


def _manifest(video: Path) -> dict[str, Any]:
    return json.loads(video.with_suffix(".json").read_text())  # type: ignore[no-any-return]


def _document(title: str) -> list[str]:
    [argv] = [list(c.argv) for c in commands.commands_of("003") if c.title == title]
    return argv


def _override(weights: Path, **video: Any) -> None:
    """Other limits of the network's videos, in the card.json beside it."""
    file = weights / "card.json"
    fields = {**json.loads(file.read_text()), "video": video}
    file.unlink()
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("title", "card", "refined"),
    [
        ("example 1: single generation on the 2B model", TWO, False),
        ("example 1: single generation with the prompt upsampler", TWO, True),
        ("example 2: single generation on the 14B model", FOURTEEN, False),
        ("example 2: single generation on the 14B model with model offloading", FOURTEEN, True),
    ],
)
def test_the_documents_single_generations_run(
    run_here: Run, here: Path, title: str, card: str, refined: bool
) -> None:
    argv = _document(title)
    ended = run_here(*argv, *SMALL)
    assert ended.returncode == 0, ended.stderr
    video = here / f"outputs/{argv[argv.index('--video_save_name') + 1]}.mp4"
    manifest = _manifest(video)
    assert manifest["model"] == card
    request = manifest["request"]
    assert (request["sampler"], request["guidance"], request["seed"], request["fps"]) == ("RES", 7.0, 1, 16)
    assert request["num_input_frames"] == 1
    assert manifest["visual_input_sha256"] == file_digest(here / request["visual_input"])
    assert manifest["prompt"] == video.with_suffix(".txt").read_text()
    assert manifest["prompt"] == (REFINED if refined else request["prompt"])
    guarded = "--disable_guardrail" not in argv
    assert (manifest["guardrails"] == {"state": "on", "outcome": "passed"}) == guarded
    assert set(manifest["stages"]) == {
        *("text_encoder", "denoise", "tokenizer"),
        *(("upsampler",) if refined else ()),
        *(("text_guard", "video_guard") if guarded else ()),
    }
    reader = imageio.get_reader(video)
    assert (len([*reader.iter_data()]), reader.get_meta_data()["fps"]) == (9, 16)


@pytest.mark.slow
def test_the_documents_eight_ranks_make_what_one_makes(run_here: Run, here: Path) -> None:
    argv = _document("example 3: single generation with multi-GPU inference")
    [command] = [c for c in commands.commands_of("003") if c.launcher != ("python",)]
    assert (list(command.argv), command.launcher[-1]) == (argv, "--nproc_per_node=8")
    places = [
        *("--checkpoint_dir", str(here / "checkpoints"), "--video_save_folder", str(here / "eight")),
        *("--input_image_or_video_path", str(here / argv[argv.index("--input_image_or_video_path") + 1])),
        *("--video_save_name", "v.npy"),
    ]
    ended = run_here(*argv, *SMALL, *places, "--num_gpus", "1", "--video_save_folder", "one")
    assert ended.returncode == 0, ended.stderr
    ranks = launcher.wait_for(launcher.start_ranks(8, VIDEO2WORLD, *argv, *SMALL, *places), timeout=120)
    assert [one.status for one in ranks] == [0] * 8, ranks[0].err
    assert _manifest(here / "eight/v.npy")["plan"] == {"cfg": 2, "cp": 4, "tp": 1, "replicas": 1}
    _assert_equal(_frames(here / "eight/v.npy"), _frames(here / "one/v.npy"))


@pytest.mark.parametrize(
    ("title", "folder"),
    [
        ("example 4: batch generation", "diffusion-video2world-2b-batch"),
        ("example 5: batch generation without prompt upsampler", "diffusion-video2world-2b-batch-wo-ps"),
    ],
)
def test_the_documents_batches_run(
    run_here: Run, here: Path, caplog: pytest.LogCaptureFixture, title: str, folder: str
) -> None:
    argv = _document(title)
    ended = run_here(*argv, *SMALL)
    assert ended.returncode == 0, ended.stderr
    assert "--num_input_frames 9 is taken for 5" in caplog.text
    assert {path.name for path in (here / folder).iterdir()} == {
        f"{i}{ending}" for i in range(2) for ending in (".mp4", ".txt", ".json")
    }
    lines = (ROOT / argv[argv.index("--batch_input_path") + 1]).read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(map(json.loads, lines)):
        manifest = _manifest(here / folder / f"{i}.mp4")
        assert manifest["request"]["visual_input"] == line["visual_input"]
        assert manifest["request"]["num_input_frames"] == 5
        assert manifest["prompt"] == line.get("prompt", REFINED)
        assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}


@pytest.mark.parametrize("frames", [1, 5])
def test_the_video_begins_with_the_given_frames_as_the_tokenizer_gives_them_back(
    run_here: Run, here: Path, frames: int
) -> None:
    made_THWC = _make(run_here, "v", "--input_image_or_video_path", CLIP, "--num_input_frames", str(frames))
    tokenizer = _tokenizer(here / "checkpoints" / TOKENIZER)
    given_THWC = cropped(read_last_frames(here / CLIP, frames), height=32, width=48)
    with torch.inference_mode(), tokenizer:
        back_THWC = tokenizer.decode(tokenizer.encode(unit_pixels(given_THWC)))
    _assert_equal(made_THWC[:frames], back_THWC.numpy())
    assert abs(made_THWC[frames:].mean() - back_THWC.float().mean()) > 0.01
    assert abs(made_THWC[frames] - made_THWC[frames - 1]).max() > 1


def _tokenizer(folder: Path) -> WanTokenizerStage:
    shape = standin_card(find_card(TWO)).tokenizer
    assert isinstance(shape, WanTokenizerShape)
    return WanTokenizerStage(shape=shape, folder=folder, device=torch.device("cpu"))


def _assert_equal(one: numpy.ndarray, other: numpy.ndarray) -> None:
    """But for what the order of a sum does to a rounding."""
    difference = abs(one.astype(int) - other.astype(int))
    assert one.shape == other.shape
    assert difference.max() <= 1
    assert (difference != 0).mean() <= 0.002


def test_other_frames_prompts_and_seeds_make_another_video(run_here: Run, here: Path) -> None:
    made = [
        _make(run_here, str(number), *flags)
        for number, flags in enumerate(
            (
                [],
                [],
                ["--input_image_or_video_path", CLIP],
                ["--input_image_or_video_path", CLIP, "--num_input_frames", "5"],
                ["--prompt", "a blue cube"],
                ["--negative_prompt", "a dull scene"],
                ["--seed", "2"],
                ["--guidance", "0"],
            )
        )
    ]
    assert numpy.array_equal(made[0], made[1])
    assert len({frames.tobytes() for frames in made}) == len(made) - 1


def test_the_frame_rate_changes_no_frame(run_here: Run) -> None:
    """Predict1's networks are told of it, Predict2's are not."""
    assert numpy.array_equal(_make(run_here, "a"), _make(run_here, "b", "--fps", "30"))


def test_offloading_everything_changes_no_frame(run_here: Run) -> None:
    everything = [
        *("--offload_tokenizer", "--offload_diffusion_transformer", "--offload_text_encoder_model"),
        *("--offload_prompt_upsampler", "--offload_guardrail_models"),
    ]
    assert numpy.array_equal(_make(run_here, "a"), _make(run_here, "b", *everything))


@pytest.fixture
def refined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str, tuple[int, ...]]]:
    """What each call of the refiner was given: whose folder, which prompt, an image of which shape."""
    asked = []
    call = PromptRefiner.__call__

    def recorded(self: PromptRefiner, prompt: str, image_HWC: torch.Tensor) -> str:
        asked.append((self.folder, prompt, tuple(image_HWC.shape)))
        return call(self, prompt, image_HWC)

    monkeypatch.setattr(PromptRefiner, "__call__", recorded)
    return asked


@pytest.mark.parametrize(
    ("flags", "folder", "prompt"),
    [
        ([], REFINER, ""),
        (["--prompt", "a blue cube"], REFINER, "a blue cube"),
        (["--prompt", "a cube", "--prompt_upsampler_dir", OTHER_REFINER], OTHER_REFINER, "a cube"),
        (["--prompt_upsampler_dir", f"checkpoints/{OTHER_REFINER}"], OTHER_REFINER, ""),
    ],
)
def test_the_refiner_reads_the_prompt_and_sees_the_image_as_it_is(
    run_here: Run,
    here: Path,
    refined: list[tuple[Path, str, tuple[int, ...]]],
    caplog: pytest.LogCaptureFixture,
    flags: list[str],
    folder: str,
    prompt: str,
) -> None:
    ended = run_here(*MODEL, "--input_image_or_video_path", IMAGE, "--disable_guardrail", *SMALL, *flags)
    assert ended.returncode == 0, ended.stderr
    width, height = Image.open(here / IMAGE).size
    [(path, asked, shape)] = refined
    assert path.resolve() == (here / "checkpoints" / folder).resolve()
    assert (asked, shape) == (prompt, (height, width, 3))
    assert "--prompt is not used" not in caplog.text
    manifest = _manifest(here / "outputs/output.mp4")
    assert manifest["prompt"] == (here / "outputs/output.txt").read_text() == REFINED
    assert manifest["prompt_upsampler"] == "on, joins the prompt with what it sees"
    assert set(manifest["files"]) == {"weights", "tokenizer", "text_encoder", "upsampler"}


@pytest.mark.parametrize("upsampler", [[], ["--disable_prompt_upsampler"]])
@pytest.mark.parametrize(("prompt", "by"), [(HARMFUL, "Llama Guard"), (FORBIDDEN, "word list")])
def test_a_prompt_is_judged_whether_or_not_it_is_refined(
    run_here: Run, here: Path, upsampler: list[str], prompt: str, by: str
) -> None:
    flags = [*MODEL, "--input_image_or_video_path", IMAGE, "--prompt", prompt, *SMALL, *upsampler]
    ended = run_here(*flags)
    assert ended.returncode == 3, ended.stderr
    assert by in ended.stdout
    assert [path.name for path in (here / "outputs").iterdir()] == ["output.blocked.json"]


LINES = [
    *({"prompt": "a", "visual_input": IMAGE}, {"visual_input": IMAGE}, {"prompt": "c"}),
    {"prompt": FORBIDDEN, "visual_input": IMAGE, "seed": 4},
]


@pytest.mark.parametrize(
    ("flags", "says", "made", "asked"),
    [
        ([], "2 videos made, 0 were there, 1 blocked, 0 failed, 1 bad lines", {"0", "1"}, ["a", ""]),
        (
            ["--disable_prompt_upsampler"],
            "1 videos made, 0 were there, 1 blocked, 0 failed, 2 bad lines",
            {"0"},
            [],
        ),
    ],
)
def test_a_line_needs_a_prompt_only_without_the_refiner(
    run_here: Run,
    here: Path,
    refined: list[tuple[Path, str, tuple[int, ...]]],
    flags: list[str],
    says: str,
    made: set[str],
    asked: list[str],
) -> None:
    (here / "b.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    ended = run_here(*MODEL, "--batch_input_path", "b.jsonl", *SMALL, *flags)
    assert ended.returncode == 1, ended.stderr
    assert says in ended.stdout
    assert 'line 3: it has no "visual_input"' in ended.stdout
    assert "makes nothing of" not in ended.stdout
    assert {path.stem for path in (here / "outputs").glob("*.mp4")} == made
    assert [prompt for _, prompt, _ in refined] == asked


def test_more_frames_than_the_network_makes_at_once_come_in_chunks_that_go_on_from_each_other(
    run_here: Run, own: Path
) -> None:
    _override(own / TWO, num_frames=9, max_frames=9)
    long_THWC = _make(run_here, "long", "--num_video_frames", "13")
    first_THWC = _make(run_here, "first")
    assert numpy.array_equal(long_THWC[:9], first_THWC)
    numpy.save("end.npy", first_THWC[-5:].astype(numpy.uint8))
    flags = ["--input_image_or_video_path", "end.npy", "--num_input_frames", "5", "--seed", "2"]
    _assert_equal(_make(run_here, "second", *flags)[5:], long_THWC[9:])
    by_one_THWC = _make(run_here, "by_one", "--num_video_frames", "17", "--num_overlap_frames", "1")
    assert numpy.array_equal(by_one_THWC[:9], first_THWC)
    assert not numpy.array_equal(by_one_THWC[9:13], long_THWC[9:])


def test_the_input_size_is_kept_if_asked_for(run_here: Run, here: Path) -> None:
    frames_THWC = numpy.random.RandomState(0).randint(0, 256, (5, 30, 70, 3), numpy.uint8)
    numpy.save(here / "wide.npy", frames_THWC)
    flags = ["--input_image_or_video_path", "wide.npy", "--num_input_frames", "5"]
    assert _make(run_here, "made", *flags).shape == (9, 32, 48, 3)
    assert _make(run_here, "kept", *flags, "--keep_input_size").shape == (9, 30, 70, 3)


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [
        *(("a.png", (37, 53), "RGB"), ("a.PNG", (53, 37), "RGBA"), ("a.webp", (61, 45), "RGB")),
        *(("a.jpeg", (1, 1), "L"), ("a.bmp", (400, 3), "P")),
    ],
)
def test_an_image_of_any_kind_and_size_will_do(
    run_here: Run, here: Path, name: str, size: tuple[int, int], mode: str
) -> None:
    values_HW3 = numpy.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), numpy.uint8)
    Image.fromarray(values_HW3).convert(mode).save(here / name)
    assert _make(run_here, "v", "--input_image_or_video_path", name).shape == (9, 32, 48, 3)


def test_a_network_of_a_size_is_found_by_the_size(run_here: Run, own: Path) -> None:
    (own / TWO / "model.pt").rename(own / TWO / "model-480p-10fps.pt")
    ended = run_here(*SINGLE, "--fps", "10")
    assert ended.returncode == 0, ended.stderr
    manifest = _manifest(Path("outputs/output.mp4"))
    assert manifest["model"] == f"{TWO}-480p-10fps"
    assert Path(manifest["files"]["weights"]["path"]).name == "model-480p-10fps.pt"


def test_a_stand_in_in_the_hubs_cache_is_found(
    run_here: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    (here / "checkpoints").unlink()
    write_standin([find_card(TWO)], here / "home", seed=0, layout="hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "home/hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert _make(run_here, "v").shape == (9, 32, 48, 3)


SEVEN_LATENT_FRAMES = ["--num_video_frames", "25"]
"""Neither 2, 3 nor 4 ranks could share them."""


@pytest.fixture(scope="module")
def shared_video(
    checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[numpy.ndarray, dict[str, Any]]]:
    """The video that so many ranks make of one request, and the plan they had; each made once."""
    folder, made = tmp_path_factory.mktemp("ranks"), dict[tuple[Any, ...], Any]()

    def video(num_ranks: int, *flags: str) -> tuple[numpy.ndarray, dict[str, Any]]:
        if (num_ranks, *flags) not in made:
            path = folder / f"{len(made)}.npy"
            argv = [
                *(*MODEL, "--checkpoint_dir", str(checkpoints), "--prompt", "a red ball", *PLAIN, *SMALL),
                *("--input_image_or_video_path", str(ROOT / CLIP), "--num_input_frames", "5"),
                *(*SEVEN_LATENT_FRAMES, *flags),
                *("--video_save_folder", str(folder), "--video_save_name", path.name),
            ]
            launcher.run_ranks(num_ranks, VIDEO2WORLD, *argv, timeout=120)
            made[num_ranks, *flags] = _frames(path), _manifest(path)
        return made[num_ranks, *flags]  # type: ignore[no-any-return]

    return video


@pytest.mark.parametrize(
    ("num_ranks", "flags", "plan"),
    [
        (2, [], (2, 1, 1)),
        (2, ["--cfg_parallel", "off"], (1, 2, 1)),
        (3, [], (1, 3, 1)),
        (4, [], (2, 2, 1)),
        (4, ["--cfg_parallel", "off"], (1, 4, 1)),
        (2, ["--tensor_parallel", "2"], (1, 1, 2)),
        (4, ["--tensor_parallel", "2", "--cfg_parallel", "off"], (1, 2, 2)),
    ],
)
def test_any_number_of_ranks_makes_the_video_of_one(
    shared_video: Callable[..., tuple[numpy.ndarray, dict[str, Any]]],
    num_ranks: int,
    flags: list[str],
    plan: tuple[int, int, int],
) -> None:
    one, of_one = shared_video(1)
    many, of_many = shared_video(num_ranks, *flags)
    assert one.shape == (25, 32, 48, 3)
    assert of_many["plan"] == {**dict(zip(("cfg", "cp", "tp"), plan, strict=True)), "replicas": 1}
    assert of_many["item"] == of_one["item"]
    _assert_equal(many, one)


def _rewrite(model: Path, prefixes: Collection[str]) -> None:
    """The network in model.pt, with its weights under each prefix; those of "net_ema." are other ones."""
    content = torch.load(model)
    model.unlink()
    average = {name: values * 0.5 if values.ndim > 1 else values for name, values in content.items()}
    of = {"net.": content, "net_ema.": average}
    torch.save(
        {
            prefix + name.removeprefix("net."): values
            for prefix in prefixes
            for name, values in of[prefix].items()
        },
        model,
    )


def test_of_a_file_with_the_weights_and_their_average_each_can_be_had(run_here: Run, own: Path) -> None:
    regular = _make(run_here, "a")
    _rewrite(own / TWO / "model.pt", ["net.", "net_ema."])
    assert numpy.array_equal(_make(run_here, "b"), regular)
    average = _make(run_here, "c", "--load_ema")
    assert not numpy.array_equal(average, regular)


def test_a_file_with_the_average_alone_is_read_with_the_flag_only(run_here: Run, own: Path) -> None:
    _rewrite(own / TWO / "model.pt", ["net_ema."])
    refused = run_here(*SINGLE)
    assert refused.returncode == 2
    assert "holds the moving average of its weights alone: pass --load_ema" in refused.stderr
    assert not Path("outputs").exists()
    assert _make(run_here, "v", "--load_ema").shape == (9, 32, 48, 3)


def test_general_names_no_flag_that_it_lacks_for_a_file_with_the_average_alone(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _rewrite(own / TWO / "model.pt", ["net_ema."])
    argv = ["--model", TWO, "--cosmos_assets_dir", "checkpoints", "--prompt", "x", *SMALL]
    argv += ["--disable_guardrail", "--conditioned_image_or_video_path", IMAGE, "--video_save_path", "v.mp4"]
    assert _load(GENERAL).main(argv, environ={"COSMOS_NEMO_CACHE": ""}) == 2
    flags = {flag for action in general._parser()._actions for flag in action.option_strings}
    said = capfd.readouterr().err
    assert "moving average" in said
    assert set(re.findall(r"--[a-z][a-z0-9_]*", said)) <= flags


def test_a_file_with_the_weights_and_their_average_can_be_inspected(
    own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _rewrite(own / TWO / "model.pt", ["net.", "net_ema."])
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    assert inspect.run(parser.parse_args([str(own / TWO)])) == 0
    assert "another network" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["nemo", "diffusers", "safetensors"])
def test_a_converted_network_makes_the_same_video(run_here: Run, here: Path, kind: str) -> None:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    folder = here / kind / TWO
    folder.parent.mkdir()
    words = [str(here / "checkpoints" / TWO), str(folder), "--to", kind, "--model", TWO]
    assert convert.run(parser.parse_args(words)) == 0
    made = _make(run_here, "converted", "--diffusion_transformer_dir", str(folder))
    assert numpy.array_equal(made, _make(run_here, "released"))
    refused = run_here(*SINGLE, "--diffusion_transformer_dir", str(folder), "--load_ema")
    assert refused.returncode == 2
    assert "holds no moving average" in refused.stderr


def test_a_batch_is_made_anew_from_the_average(run_here: Run, own: Path) -> None:
    _rewrite(own / TWO / "model.pt", ["net.", "net_ema."])
    Path("b.jsonl").write_text(json.dumps(LINES[0]))
    flags = [*MODEL, "--batch_input_path", "b.jsonl", *PLAIN, *SMALL]
    assert "1 videos made, 0 were there" in run_here(*flags).stdout
    before = Path("outputs/0.mp4").read_bytes(), _manifest(Path("outputs/0.mp4"))
    assert "0 videos made, 1 were there" in run_here(*flags).stdout
    assert "1 videos made, 0 were there" in run_here(*flags, "--load_ema").stdout
    after = Path("outputs/0.mp4").read_bytes(), _manifest(Path("outputs/0.mp4"))
    assert before[0] != after[0] and before[1]["item"] != after[1]["item"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--load_ema"],
            "model.pt holds no moving average of its weights (net_ema....): leave out --load_ema",
        ),
        (
            ["--load_ema", "--diffusion_transformer_dir", SEVEN],
            f"--load_ema is for Predict2's files, not for {SEVEN}",
        ),
        (["--num_input_frames", "3"], f"--num_input_frames 3 must be 1 or 5 for {TWO}"),
        (["--num_overlap_frames", "9"], f"--num_overlap_frames 9 must be 1 or 5 for {TWO}"),
        (["--num_video_frames", "18"], "Pass 17 or 21"),
        (["--num_video_frames", "1"], "Pass 5 or 9"),
        (["--num_input_frames", "5"], f"{IMAGE} is an image, and --num_input_frames 5 needs a video"),
        (["--num_input_frames", "9"], f"{IMAGE} is an image, and --num_input_frames 5 needs a video"),
        (["--height", "440"], "--height 440 does not fit"),
        (["--width", "100"], "--width 100 does not fit"),
        (["--input_image_or_video_path", "nowhere.webp"], "nowhere.webp does not exist"),
        (["--input_image_or_video_path", "torn.png"], "torn.png is an image that cannot be decoded"),
        (["--diffusion_transformer_dir", "Cosmos-Predict2-2B-Text2Image"], "inference/text2image.py"),
    ],
)
def test_what_cannot_be_made_exits_2_with_a_sentence(
    run_here: Run, here: Path, flags: list[str], says: str
) -> None:
    (here / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 99)
    ended = run_here(*SINGLE, *flags)
    assert ended.returncode == 2
    assert says in ended.stderr and "Traceback" not in ended.stderr
    assert not (here / "outputs").exists()


def test_a_video_with_too_few_frames_is_told(run_here: Run, here: Path) -> None:
    numpy.save(here / "short.npy", numpy.zeros((4, 32, 48, 3), numpy.uint8))
    ended = run_here(*SINGLE, "--input_image_or_video_path", "short.npy", "--num_input_frames", "5")
    assert ended.returncode == 2
    assert "short.npy has 4 frame(s)" in ended.stderr and "--num_input_frames 5" in ended.stderr


def test_a_folder_with_another_network_than_the_one_named_names_the_ways_out(
    run_here: Run, own: Path
) -> None:
    (own / TWO / "model.pt").rename(own / TWO / "model-720p-10fps.pt")
    ended = run_here(*SINGLE, "--model", f"{TWO}-480p-16fps")
    assert ended.returncode == 2
    assert "holds model-720p-10fps.pt, but" in ended.stderr
    assert "is model-480p-16fps.pt" in ended.stderr
    assert "--diffusion_transformer_dir" in ended.stderr and "download" in ended.stderr
    assert not Path("outputs").exists()


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "flags", "names"),
    [
        (lambda own: _truncate(own / TOKENIZER / "tokenizer.pth"), PLAIN, "tokenizer.pth is truncated"),
        (lambda own: (own / TOKENIZER / "tokenizer.pth").unlink(), PLAIN, "holds no video tokenizer"),
        (lambda own: _truncate(own / TWO / "model.pt"), PLAIN, "model.pt is truncated"),
        (lambda own: (own / TWO / "card.json").unlink(), PLAIN, "put a card.json with its sizes beside it"),
        (lambda own: (own / REFINER / "model.safetensors").unlink(), PLAIN[1:], REFINER),
        (lambda own: (own / REFINER / "tokenizer.json").unlink(), PLAIN[1:], "tokenizer.json"),
        (lambda own: _truncate(own / REFINER / "model.safetensors"), PLAIN[1:], "model.safetensors"),
        (lambda own: shutil.rmtree(own / REFINER), PLAIN[1:], "--prompt_upsampler_dir"),
        (lambda own: shutil.rmtree(own / "nvidia/Cosmos-Guardrail1"), PLAIN[:1], "--guardrail_dir"),
    ],
    ids=[
        *("torn_tokenizer", "no_tokenizer", "torn_network", "no_card_file", "no_refiner_weights"),
        *("no_refiner_tokenizer", "torn_refiner", "no_refiner", "no_guardrails"),
    ],
)
def test_a_damaged_or_missing_model_stops_the_run_before_anything_is_made(
    run_here: Run,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    flags: list[str],
    names: str,
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    damage(own)
    ended = run_here(*MODEL, "--input_image_or_video_path", IMAGE, "--prompt", "x", *SMALL, *flags)
    assert ended.returncode == 2, ended.stderr
    assert names in ended.stderr and "Traceback" not in ended.stderr
    assert not Path("outputs").exists()


def test_a_dry_run_tells_the_plan_of_every_document_command(run_here: Run, here: Path) -> None:
    for command in commands.commands_of("003", script="cosmos_predict2/diffusion/inference/video2world.py"):
        if command.argv == ("--help",):
            continue
        ended = run_here(*command.argv, "--dry_run")
        assert ended.returncode == 0, ended.stderr
        card = FOURTEEN if FOURTEEN in command.argv else TWO
        size = "81 frames of 768 x 432" if "432" in command.argv else "93 frames of 1280 x 704"
        assert f"{card}: {size} at 16 fps, seed 1" in ended.stdout
        assert "RES, 35 steps, guidance 7: 72 network calls" in ended.stdout
    assert not (here / "outputs").exists()


def test_there_is_a_card_for_every_released_network() -> None:
    assert {name for name in CARDS if name.startswith("Cosmos-Predict2")} == {
        card + variant
        for card in (TWO, FOURTEEN)
        for variant in ("", "-480p-10fps", "-480p-16fps", "-720p-10fps", "-720p-16fps")
    } | {f"Cosmos-Predict2-{size}-Text2Image" for size in ("2B", "14B")}
