"""inference/text2world.py as a person runs it: the document's commands, batches, guards, offloading."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from cosmos_nemo.cli import text2world
from cosmos_nemo.stages.media import file_digest
from tests.doors import commands
from tests.doors.instant import help_of
from tests.doors.test_general import SMALL, Ended, _load
from tests.parallel import launcher

ROOT = Path(__file__).parents[2]
TEXT2WORLD = ROOT / "inference/text2world.py"
SEVEN, FOURTEEN = "Cosmos-Predict1-7B-Text2World", "Cosmos-Predict1-14B-Text2World"
HARMFUL, FORBIDDEN = "a zorchblade", "a grobnik"
"""Prompts that the stand-ins' Llama Guard and word lists block."""

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.tools.standin import write_standin

    folder = tmp_path_factory.mktemp("text2world") / "checkpoints"
    write_standin([find_card(SEVEN), find_card(FOURTEEN)], folder, seed=0, layout="folder")
    return folder


@pytest.fixture
def run_here(
    checkpoints: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The door's main in this process, from a folder that holds `checkpoints` and the documents' assets."""
    door = _load(TEXT2WORLD)
    (tmp_path / "checkpoints").symlink_to(checkpoints)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "COSMOS_NEMO_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: str) -> Ended:
        capfd.readouterr()
        status = door.main(list(argv), environ={"COSMOS_NEMO_CACHE": ""})
        return Ended(status, *capfd.readouterr())

    return run


def _document(example: int) -> list[str]:
    (found,) = [
        list(command.argv)
        for command in commands.commands_of("000")
        if command.title.startswith(f"example {example}:")
    ]
    return found


def _manifest(video: Path) -> dict[str, Any]:
    return json.loads(video.with_suffix(".json").read_text())  # type: ignore[no-any-return]


def _rank_0_alone_has_guards(ranks: list[launcher.Ended]) -> None:
    for word in ("text_guard", "upsampler", "video_guard"):
        assert all(word not in one.err + one.out for one in ranks[1:]), word


@pytest.mark.parametrize(
    ("example", "name"), [(1, "diffusion-text2world-7b"), (2, "diffusion-text2world-14b")]
)
def test_the_documents_single_commands_run(run_here: Run, tmp_path: Path, example: int, name: str) -> None:
    ended = run_here(*_document(example), *SMALL)
    assert ended.returncode == 0, ended.stderr
    video = tmp_path / "outputs" / f"{name}.mp4"
    assert video.stat().st_size > 0
    manifest = _manifest(video)
    assert manifest["model"] == (SEVEN, FOURTEEN)[example - 1]
    assert manifest["request"]["sampler"] == "EDM"
    assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}
    assert manifest["prompt"] == video.with_suffix(".txt").read_text() != commands.WAREHOUSE_PROMPT
    assert set(manifest["stages"]) == {
        *("text_guard", "upsampler", "text_encoder", "denoise", "tokenizer", "video_guard")
    }
    assert "was trained on 121 frames" in ended.stdout


@pytest.mark.slow
def test_the_documents_command_for_8_gpus_runs_on_8_ranks(checkpoints: Path, tmp_path: Path) -> None:
    argv = [*_document(3), *SMALL, "--video_save_folder", str(tmp_path)]
    argv[argv.index("--checkpoint_dir") + 1] = str(checkpoints)
    ended = launcher.wait_for(launcher.start_ranks(8, TEXT2WORLD, *argv))
    assert [one.status for one in ended] == [0] * 8, ended[0].err
    _rank_0_alone_has_guards(ended)
    manifest = _manifest(tmp_path / "diffusion-text2world-7b-8gpu.mp4")
    assert manifest["plan"] == {"cfg": 2, "cp": 4, "tp": 1, "replicas": 1}


def test_the_documents_batch_runs(run_here: Run, tmp_path: Path) -> None:
    ended = run_here(*_document(4), *SMALL)
    assert ended.returncode == 0, ended.stderr
    lines = (ROOT / "assets/diffusion/batch_inputs/text2world.jsonl").read_text().splitlines()
    folder = tmp_path / "diffusion-text2world-7b-batch"
    expected = {f"{i}{ending}" for i in range(len(lines)) for ending in (".mp4", ".txt", ".json")}
    assert {path.name for path in folder.iterdir()} == expected
    assert f"{len(lines)} videos made" in ended.stdout


SINGLE = ["--prompt", "a red ball", *SMALL]


def test_whatever_is_offloaded_the_frames_are_the_same(run_here: Run, tmp_path: Path) -> None:
    combinations: dict[str, list[str]] = {
        "none": [],
        "all": ["--offload", "all"],
        "text": ["--offload_text_encoder_model", "--offload_prompt_upsampler"],
        "network": ["--offload_diffusion_transformer", "--offload_tokenizer"],
        "guards": ["--offload_guardrail_models"],
    }
    for name, flags in combinations.items():
        ended = run_here(*SINGLE, "--video_save_name", f"{name}.npy", *flags)
        assert ended.returncode == 0, ended.stderr
    first = numpy.load(tmp_path / "outputs" / "none.npy")
    for name in combinations:
        assert numpy.array_equal(numpy.load(tmp_path / "outputs" / f"{name}.npy"), first), name


def test_a_parked_model_makes_the_same_second_video(run_here: Run, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"prompt": "a ball"}\n{"prompt": "a cube"}\n')
    parked: dict[str, list[str]] = {"kept": [], "all": ["--offload", "all"], "some": ["--offload_tokenizer"]}
    for name, flags in parked.items():
        ended = run_here("--batch_input_path", "b.jsonl", "--video_save_folder", name, *SMALL, *flags)
        assert ended.returncode == 0, ended.stderr
    for i in range(2):
        videos = [(tmp_path / name / f"{i}.mp4").read_bytes() for name in parked]
        assert videos[0] == videos[1] == videos[2]


@pytest.mark.parametrize(
    ("prompt", "by"), [(FORBIDDEN, "blocked by the word lists"), (HARMFUL, "blocked by the Llama Guard")]
)
def test_a_blocked_prompt_exits_3_and_leaves_a_record_and_no_video(
    run_here: Run, tmp_path: Path, prompt: str, by: str
) -> None:
    ended = run_here("--prompt", prompt, *SMALL)
    assert ended.returncode == 3, ended.stderr
    assert by in ended.stdout
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["output.blocked.json"]
    record = json.loads((tmp_path / "outputs" / "output.blocked.json").read_text())
    assert record["guardrails"]["outcome"] == "blocked"
    assert record["request"]["prompt"] == prompt


def test_without_guardrails_nothing_is_judged_and_the_manifest_says_so(run_here: Run, tmp_path: Path) -> None:
    ended = run_here("--prompt", FORBIDDEN, *SMALL, "--disable_guardrail", "--disable_prompt_upsampler")
    assert ended.returncode == 0, ended.stderr
    manifest = _manifest(tmp_path / "outputs" / "output.mp4")
    assert manifest["guardrails"] == {"state": "disabled by --disable_guardrail"}
    assert manifest["prompt_upsampler"] == "off"
    assert (tmp_path / "outputs" / "output.txt").read_text() == FORBIDDEN
    assert set(manifest["stages"]) == {"text_encoder", "denoise", "tokenizer"}


@pytest.fixture
def own(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoints, of hard links: a file that changes must be removed first."""
    return Path(shutil.copytree(checkpoints, tmp_path / "own", copy_function=os.link))


@pytest.mark.parametrize(
    "missing",
    [
        "nvidia/Cosmos-Guardrail1",
        "nvidia/Cosmos-Guardrail1/blocklist/nltk_data",
        "nvidia/Cosmos-Guardrail1/face_blur_filter",
        "meta-llama/Llama-Guard-3-8B",
    ],
)
def test_a_missing_guardrail_stops_the_run_before_anything_is_read(
    run_here: Run, own: Path, tmp_path: Path, missing: str
) -> None:
    shutil.rmtree(own / missing)
    ended = run_here("--checkpoint_dir", str(own), *SINGLE)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("scale", "error"), [(1.0, "ItemError"), (float("nan"), "GuardrailUnavailable")])
def test_a_guard_whose_answer_makes_no_sense_passes_nothing(
    run_here: Run, own: Path, tmp_path: Path, scale: float, error: str
) -> None:
    """Random weights instead of Llama Guard's: an answer that is no judgement, or no answer at all."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    weights = own / "meta-llama/Llama-Guard-3-8B/model.safetensors"
    content = {name: torch.randn_like(values) * scale for name, values in load_file(weights).items()}
    weights.unlink()
    save_file(content, weights, metadata={"format": "pt"})
    ended = run_here("--checkpoint_dir", str(own), *SINGLE)
    assert ended.returncode == 1, ended.stderr
    assert error in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "outputs").exists()


BATCH = [
    *('{"prompt": "a ball"}', "", f'{{"prompt": "{HARMFUL}"}}', "not json", f'{{"prompt": "{FORBIDDEN}"}}'),
    *('{"prompt": "a cube", "seed": 4}', '{"prompt": "a cone"}'),
]


@pytest.fixture
def batch(tmp_path: Path) -> list[str]:
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join(BATCH))
    return ["--batch_input_path", str(path), *SMALL, "--video_save_folder"]


def test_of_a_batch_what_is_bad_or_blocked_is_told_and_the_rest_is_made(
    run_here: Run, batch: list[str], tmp_path: Path
) -> None:
    ended = run_here(*batch, "o")
    assert ended.returncode == 1, ended.stderr
    assert "line 4: it is no JSON" in ended.stdout
    assert "3 videos made, 0 were there, 2 blocked, 0 failed, 1 bad lines" in ended.stdout
    made = {path.name for path in (tmp_path / "o").iterdir()}
    assert made == {
        *(f"{i}{ending}" for i in (0, 5, 6) for ending in (".mp4", ".txt", ".json")),
        *("2.blocked.json", "4.blocked.json"),
    }
    assert _manifest(tmp_path / "o" / "5.mp4")["request"]["seed"] == 4


def test_a_batch_of_which_something_is_blocked_exits_3(
    run_here: Run, batch: list[str], tmp_path: Path
) -> None:
    (tmp_path / "b.jsonl").write_text("\n".join(line for line in BATCH if line != "not json"))
    assert run_here(*batch, "o").returncode == 3
    again = run_here(*batch, "o")
    assert again.returncode == 3
    assert "0 videos made, 3 were there, 2 blocked" in again.stdout


_DIES = """
import os, signal, sys
from cosmos_nemo.cli import parse_text2world
from cosmos_nemo.launch import run
from cosmos_nemo.stages import media

write = media._write_mp4

def write_or_die(frames, path, fps):
    if ".5." in path.name:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(frames, path, fps)

media._write_mp4 = write_or_die
sys.exit(run(lambda: parse_text2world(sys.argv[1:])))
"""


def test_a_batch_goes_on_where_a_killed_one_ended(
    run_here: Run, batch: list[str], checkpoints: Path, tmp_path: Path
) -> None:
    """Killed while it writes the second video, and rerun: the files of an unbroken run."""
    assert run_here(*batch, "unbroken").returncode == 1
    script, folder = tmp_path / "dies.py", tmp_path / "o"
    script.write_text(_DIES)
    flags = [*batch, str(folder), "--checkpoint_dir", str(checkpoints)]
    (killed,) = launcher.wait_for([launcher.start(script, *flags, environment=launcher.clean_environment())])
    assert killed.status == -signal.SIGKILL, killed.err
    before = (folder / "0.mp4").stat().st_mtime_ns
    assert not (folder / "5.mp4").exists()
    assert any(".part." in path.name for path in folder.iterdir())
    ended = run_here(*batch, "o")
    assert "2 videos made, 1 were there, 2 blocked" in ended.stdout
    assert (folder / "0.mp4").stat().st_mtime_ns == before
    for i in (0, 5, 6):
        for ending in (".mp4", ".txt"):
            ours, theirs = (tmp_path / name / f"{i}{ending}" for name in ("o", "unbroken"))
            assert ours.read_bytes() == theirs.read_bytes()
    there, unbroken = ({path.name for path in (tmp_path / name).iterdir()} for name in ("o", "unbroken"))
    assert there == unbroken


def test_another_seed_makes_the_batch_anew(run_here: Run, batch: list[str], tmp_path: Path) -> None:
    run_here(*batch, "o")
    before = (tmp_path / "o" / "0.mp4").read_bytes()
    ended = run_here(*batch, "o", "--seed", "2")
    # The seed of line 6 is its own.
    assert "2 videos made, 1 were there" in ended.stdout
    assert "2 of the 5 videos in o are of other requests and will be replaced" in ended.stdout
    assert (tmp_path / "o" / "0.mp4").read_bytes() != before


@pytest.mark.parametrize("flags", [[], pytest.param(["--cfg_parallel", "off"], marks=pytest.mark.slow)])
def test_replicas_share_a_batch_and_make_the_videos_of_one_rank(
    run_here: Run, batch: list[str], checkpoints: Path, tmp_path: Path, flags: list[str]
) -> None:
    # The stand-ins' upsampler would answer every prompt with the same words.
    batch = ["--disable_prompt_upsampler", *batch]
    assert run_here(*batch, "one").returncode == 1
    many = [*batch, str(tmp_path / "many"), "--checkpoint_dir", str(checkpoints), "--replicas", "2", *flags]
    ended = launcher.wait_for(launcher.start_ranks(4, TEXT2WORLD, *many))
    assert [one.status for one in ended] == [1] * 4, ended[0].err
    assert "3 videos made, 0 were there, 2 blocked, 0 failed, 1 bad lines" in ended[0].out
    ours, theirs = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("many", "one"))
    assert ours == theirs
    assert [rank for rank, one in enumerate(ended) if "wrote " in one.out] == [0, 2]
    for i in (0, 5, 6):
        many_, one = (_manifest(tmp_path / name / f"{i}.mp4") for name in ("many", "one"))
        assert many_["item"] == one["item"]
        assert many_["plan"]["replicas"] == 2
        for ending in (".mp4", ".txt"):
            made = [(tmp_path / name / f"{i}{ending}").read_bytes() for name in ("many", "one")]
            assert made[0] == made[1], f"{i}{ending}"
    videos = {(tmp_path / "many" / f"{i}.mp4").read_bytes() for i in (0, 5, 6)}
    assert len(videos) == 3, "equal videos would hide that they were mixed up"


@pytest.mark.parametrize(
    ("prompt", "status", "num_ranks"),
    [
        *((HARMFUL, 3, 2), (FORBIDDEN, 3, 2), ("a ball", 0, 2)),
        pytest.param(HARMFUL, 3, 4, marks=pytest.mark.slow),
    ],
)
def test_no_rank_hangs_when_one_blocks(
    checkpoints: Path, tmp_path: Path, prompt: str, status: int, num_ranks: int
) -> None:
    argv = ["--checkpoint_dir", str(checkpoints), "--prompt", prompt, *SMALL]
    ranks = launcher.start_ranks(num_ranks, TEXT2WORLD, *argv, "--video_save_folder", str(tmp_path))
    ended = launcher.wait_for(ranks, timeout=120)
    assert [one.status for one in ended] == [status] * num_ranks, ended[0].err
    _rank_0_alone_has_guards(ended)


_FAILS = """
import sys
from cosmos_nemo.cli import parse_text2world
from cosmos_nemo.launch import run
from cosmos_nemo.stages.{module} import {name}

def build(stage):
    raise MemoryError("no room for this model")

{name}.build = build
sys.exit(run(lambda: parse_text2world(sys.argv[1:])))
"""


@pytest.mark.parametrize(
    ("module", "name", "num_ranks"),
    [
        ("prompt_upsampler", "PromptUpsampler", 2),
        ("guardrail.text_guard", "TextGuard", 2),
        ("guardrail.video_guard", "VideoGuard", 2),
        pytest.param("guardrail.video_guard", "VideoGuard", 4, marks=pytest.mark.slow),
    ],
)
def test_no_rank_hangs_when_a_model_of_rank_0_raises(
    checkpoints: Path, tmp_path: Path, module: str, name: str, num_ranks: int
) -> None:
    script = tmp_path / "fails.py"
    script.write_text(_FAILS.format(module=module, name=name))
    argv = ["--checkpoint_dir", str(checkpoints), *SINGLE, "--video_save_folder", str(tmp_path / "o")]
    ended = launcher.wait_for(launcher.start_ranks(num_ranks, script, *argv), timeout=120)
    assert [one.status for one in ended] == [1] * num_ranks
    assert "no room for this model" in "".join(one.err for one in ended)
    assert not (tmp_path / "o").exists()


def test_a_nemo_checkpoint_in_the_place_of_model_pt_makes_the_same_frames(
    run_here: Run, own: Path, tmp_path: Path
) -> None:
    """Converted by the package, and put where model.pt was, flat and in a folder called nemo."""
    from cosmos_nemo.checkpoint.convert import convert

    assert run_here(*SINGLE, "--video_save_name", "pt.npy").returncode == 0
    convert(own / SEVEN, tmp_path / "nemo", to="nemo", model=SEVEN)
    for name, folder in (("flat", own / SEVEN), ("inner", own / SEVEN / "nemo")):
        shutil.rmtree(own / SEVEN)
        shutil.copytree(tmp_path / "nemo", folder)
        ended = run_here("--checkpoint_dir", str(own), *SINGLE, "--video_save_name", f"{name}.npy")
        assert ended.returncode == 0, ended.stderr
    one, *others = (numpy.load(tmp_path / "outputs" / f"{name}.npy") for name in ("pt", "flat", "inner"))
    assert all(numpy.array_equal(one, other) for other in others)


def test_post_trained_weights_of_ones_own_are_found_under_their_name(run_here: Run, own: Path) -> None:
    name = f"{SEVEN}_post-trained"
    flags = ["--checkpoint_dir", str(own), "--diffusion_transformer_dir", name, *SINGLE]
    refused = run_here(*flags)
    assert refused.returncode == 2
    assert name in refused.stderr and "model.pt" in refused.stderr
    shutil.copytree(own / SEVEN, own / name)
    assert run_here(*flags).returncode == 0


def test_a_dry_run_says_what_would_run(run_here: Run, tmp_path: Path) -> None:
    ended = run_here(*_document(2), "--dry_run")
    assert ended.returncode == 0, ended.stderr
    for part in ("network", "tokenizer", "text encoder", "prompt upsampler", "guardrails", "text guard"):
        assert f"{part}: checkpoints/" in ended.stdout
    assert "EDM, 35 steps, guidance 7: 70 network calls" in ended.stdout
    assert not (tmp_path / "outputs").exists()


def test_the_documents_help_waits_for_no_slow_library() -> None:
    (help_command,) = [c for c in commands.commands_of("000") if "help" in c.title]
    assert help_command.argv == ("--help",)
    found = help_of(str(TEXT2WORLD))
    assert all(flag in found for flag in ("--offload_guardrail_models", "--num_gpus", "--batch_input_path"))


def test_a_module_call_works_too() -> None:
    """python3 -m inference.text2world, from the repository."""
    import subprocess

    ended = subprocess.run(
        [sys.executable, "-m", "inference.text2world", "--prompt", "x", "--dry_run"],
        cwd=ROOT,
        env=launcher.clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert SEVEN in ended.stdout


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--num_gpus", "8"], "--num_gpus"),
        (["--num_gpus", "0"], "--num_gpus"),
        (["--video_save_folder", "/proc/here"], "--video_save_folder"),
        (["--checkpoint_dir", "nowhere"], "--checkpoint_dir"),
        (["--diffusion_transformer_dir", f"{SEVEN}_post-trained"], "--diffusion_transformer_dir"),
        (["--tokenizer_dir", "nowhere"], "--tokenizer_dir"),
        (["--num_video_frames", "8"], "--num_video_frames"),
        (["--cp_size", "3"], "--cp_size"),
    ],
)
def test_errors_name_only_flags_that_this_door_has(run_here: Run, flags: list[str], names: str) -> None:
    own = {flag for action in text2world._parser()._actions for flag in action.option_strings}
    ended = run_here(*SINGLE, *flags)
    assert ended.returncode == 2, ended.stderr
    command = re.compile(r"`.*?`|torchrun --\S+")
    named = set(re.findall(r"--[a-z][a-z0-9_]*", command.sub("", ended.stderr)))
    assert names in named and named <= own


def test_two_runs_at_once_in_one_folder_leave_whole_videos_each_with_its_own_manifest(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder, started = tmp_path / "shared", []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.jsonl"
        file.write_text("".join(f'{{"prompt": "ball {i} of {seed}"}}\n' for i in range(4)))
        flags = ["--checkpoint_dir", str(checkpoints), "--batch_input_path", str(file), *SMALL]
        flags += ["--seed", str(seed), "--disable_prompt_upsampler", "--disable_guardrail"]
        environment = launcher.clean_environment(COSMOS_NEMO_CACHE="")
        started.append(
            launcher.start(TEXT2WORLD, *flags, "--video_save_folder", str(folder), environment=environment)
        )
    ended = launcher.wait_for(started, timeout=120)
    assert [one.status for one in ended] == [0, 0], ended[0].err + ended[1].err
    assert {path.name for path in folder.iterdir()} == {f"{i}{e}" for i in range(4) for e in _ENDINGS}
    for i in range(4):
        manifest = _manifest(folder / f"{i}.mp4")
        assert manifest["video_sha256"] == file_digest(folder / f"{i}.mp4")
        assert (folder / f"{i}.txt").read_text() == manifest["prompt"]
        assert manifest["prompt"] == f"ball {i} of {manifest['request']['seed']}"


_ENDINGS = (".mp4", ".txt", ".json")
