"""inference/general.py as a person runs it, on stand-ins, with its files and its exit status."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import imageio
import numpy
import pytest
import torch

from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from tests.doors import commands
from tests.parallel import launcher

ROOT = Path(__file__).parents[2]
GENERAL = ROOT / "inference/general.py"
NANO = "Cosmos-Nano-Text2World"
SMALL = ["--height", "32", "--width", "48", "--num_video_frames", "9", "--num_steps", "2"]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _standin(card: str, folder: Path, layout: str = "folder") -> Path:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.tools.standin import write_standin

    write_standin([find_card(card)], folder, seed=0, layout=layout)
    return folder


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _standin(NANO, tmp_path_factory.mktemp("nano") / "assets")


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """general.py's main in this process, from an empty folder: a second instead of an interpreter's ten."""
    general = _load(GENERAL)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "COSMOS_NEMO_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: str, cache: str = "") -> Ended:
        environ = {"COSMOS_NEMO_CACHE": cache}
        capfd.readouterr()
        status = general.main(list(argv), environ=environ)
        return Ended(status, *capfd.readouterr())

    return run


def _nano_flags(nano: Path, video: Path, *more: str) -> list[str]:
    return [
        *("--model", NANO, "--cosmos_assets_dir", str(nano), "--prompt", "A red ball moves to the left."),
        *("--video_save_path", str(video), *SMALL, *more),
    ]


@pytest.mark.parametrize(
    ("stage", "name", "advice"),
    [
        (TextEncoder, "text_encoder", "docs/troubleshooting.md says what helps."),
        (
            Denoise,
            "denoise",
            "--offload text_encoder parks those in host memory; docs/troubleshooting.md says",
        ),
        (Tokenizer, "tokenizer", "--offload text_encoder,denoise parks those in host memory; docs/trouble"),
    ],
)
def test_a_gpu_without_memory_names_the_stage_what_is_predicted_for_it_and_what_helps(
    stage: type[Stage], name: str, advice: str, run_here: Run, nano: Path, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "build", fail)
        ended = run_here(*_nano_flags(nano, tmp_path / "a.mp4"))
    assert ended.returncode == 1
    *_, error, last = ended.stderr.splitlines()
    assert error == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert last.startswith(f"The GPU's memory does not suffice for {name}: ") and advice in last
    assert re.search(r"[0-9.]+ GiB are predicted on GPU 0 while it runs, [0-9.]+ of its weights", last)
    assert not (tmp_path / "a.mp4").exists()


def test_one_process_writes_video_prompt_and_manifest(run_here: Run, nano: Path, tmp_path: Path) -> None:
    video = tmp_path / "out" / "ball.mp4"
    ended = run_here(*_nano_flags(nano, video, "--subject_name", "ball", "--seed", "5", "--fps", "12"))
    assert ended.returncode == 0, ended.stderr
    frames = numpy.stack([*imageio.get_reader(video).iter_data()])
    assert frames.shape == (9, 32, 48, 3)
    assert (video.parent / "ball.txt").read_text() == "A video of sks ball. A red ball moves to the left."
    manifest = json.loads((video.parent / "ball.json").read_text())
    assert manifest["model"] == NANO
    assert manifest["request"]["seed"] == 5
    assert manifest["plan"] == {"cfg": 1, "cp": 1, "tp": 1, "replicas": 1}
    assert manifest["guardrails"] == {"state": "the model comes without"}
    assert manifest["prompt"] == "A video of sks ball. A red ball moves to the left."
    assert set(manifest["files"]) == {"weights", "tokenizer", "text_encoder"}
    assert all(len(file["fingerprint"]) >= 8 for file in manifest["files"].values())
    assert all(manifest["stages"][name]["seconds"] > 0 for name in ("text_encoder", "denoise", "tokenizer"))
    assert "torch" in manifest["versions"]
    assert sorted(p.name for p in video.parent.iterdir()) == ["ball.json", "ball.mp4", "ball.txt"]


def test_the_same_seed_makes_the_same_frames_and_another_seed_others(
    run_here: Run, nano: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        ended = run_here(*_nano_flags(nano, tmp_path / f"{name}.npy", "--seed", seed))
        assert ended.returncode == 0, ended.stderr
    a, b, c = (numpy.load(tmp_path / f"{name}.npy") for name in "abc")
    assert numpy.array_equal(a, b)
    assert not numpy.array_equal(a, c)


def test_offloading_everything_changes_no_frame(run_here: Run, nano: Path, tmp_path: Path) -> None:
    for name, flags in (("a", []), ("b", ["--offload", "text_encoder,denoise,tokenizer"])):
        ended = run_here(*_nano_flags(nano, tmp_path / f"{name}.npy", *flags))
        assert ended.returncode == 0, ended.stderr
    assert numpy.array_equal(numpy.load(tmp_path / "a.npy"), numpy.load(tmp_path / "b.npy"))


def test_rounded_rotary_angles_change_the_video_and_are_noted(
    run_here: Run, nano: Path, tmp_path: Path
) -> None:
    for name in ("float32", "bfloat16"):
        ended = run_here(*_nano_flags(nano, tmp_path / f"{name}.npy", "--rope_dtype", name))
        assert ended.returncode == 0, ended.stderr
        assert json.loads((tmp_path / f"{name}.json").read_text())["rope_dtype"] == name
    exact, rounded = (numpy.load(tmp_path / f"{name}.npy") for name in ("float32", "bfloat16"))
    assert not numpy.array_equal(exact, rounded)


def test_8_bits_make_nearly_the_same_video_and_are_noted(run_here: Run, tmp_path: Path) -> None:
    """Of the nano model that ships with the package, at its own size: noise would tell nothing."""
    size = ["--height", "128", "--width", "128", "--num_video_frames", "33", "--num_steps", "8"]
    prompt = ["--prompt", "A red ball moves to the left.", "--seed", "1"]
    for name in ("bf16", "fp8"):
        to = ["--video_save_path", str(tmp_path / f"{name}.npy"), "--precision", name]
        ended = run_here("--model", NANO, *prompt, *to, *size)
        assert ended.returncode == 0, ended.stderr
        assert ("8 bits in products and self attention" in ended.stdout) == (name == "fp8")
        manifest = json.loads((tmp_path / f"{name}.json").read_text())
        assert (manifest["precision"], manifest["backend"]) == (name, "torch")
    exact, rounded = (numpy.load(tmp_path / f"{name}.npy").astype(float) for name in ("bf16", "fp8"))
    error = numpy.square(rounded - exact).mean()
    assert error > 0 and 10 * numpy.log10(255**2 / error) > 30


def test_the_fingerprint_is_the_same_whichever_folder_of_a_checkpoint_is_named(
    run_here: Run, nano: Path, tmp_path: Path
) -> None:
    found = set()
    for name, folder in (("a", "nemo"), ("b", "nemo/weights")):
        flags = _nano_flags(nano, tmp_path / f"{name}.npy", "--nemo_checkpoint", f"{NANO}/{folder}")
        assert run_here(*flags).returncode == 0
        found.add(json.loads((tmp_path / f"{name}.json").read_text())["files"]["weights"]["fingerprint"])
    assert len(found) == 1


def test_a_cached_prompt_makes_the_same_frames(run_here: Run, nano: Path, tmp_path: Path) -> None:
    for name in "ab":
        ended = run_here(*_nano_flags(nano, tmp_path / f"{name}.npy"), cache=str(tmp_path / "cache"))
        assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "cache" / "text").iterdir())) == 2  # the prompt and the negative prompt
    assert numpy.array_equal(numpy.load(tmp_path / "a.npy"), numpy.load(tmp_path / "b.npy"))


def _general_commands() -> list[list[str]]:
    return [
        list(command.argv) for command in commands.commands_of("004") if command.script.endswith("general.py")
    ]


def test_the_documents_base_command_runs_verbatim_on_a_stand_in(tmp_path: Path) -> None:
    """Only the size is made smaller; files are found through HF_HOME as the document says."""
    hub = _standin("Cosmos-1.0-Diffusion-7B-Text2World", tmp_path / "hub", "hub")
    base = _general_commands()[0]
    environment = launcher.clean_environment(HF_HOME=str(hub), HF_HUB_OFFLINE="1", NVTE_FUSED_ATTN="0")
    ended = subprocess.run(
        [sys.executable, str(GENERAL), *base, *SMALL],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    assert "NVTE_FUSED_ATTN=0" in ended.stderr
    video = tmp_path / "Cosmos-1.0-Diffusion-7B-Text2World.mp4"
    assert video.stat().st_size > 0
    manifest = json.loads(video.with_suffix(".json").read_text())
    assert manifest["guardrails"] == {"state": "on", "outcome": "passed"}
    assert manifest["prompt"].startswith("In soft light the camera holds still")


def test_the_documents_post_trained_command_starts_8_ranks_of_which_1_takes_part(tmp_path: Path) -> None:
    name = "Cosmos-1.0-Diffusion-7B-Text2World"
    assets = _standin(name, tmp_path / "assets")
    argv = _general_commands()[1]
    argv[argv.index("--nemo_checkpoint") + 1] = str(assets / name / "nemo")
    argv[argv.index("--video_save_path") + 1] = str(tmp_path / "v.mp4")
    ended = launcher.wait_for(
        launcher.start_ranks(8, GENERAL, *argv, "--cosmos_assets_dir", str(assets), *SMALL)
    )
    assert [one.status for one in ended] == [0] * 8, ended[0].err
    assert all("is idle" in one.out for one in ended[1:])
    assert (tmp_path / "v.txt").read_text().startswith("A video of sks teal robot. In soft light")
    assert json.loads((tmp_path / "v.json").read_text())["plan"] == {
        "cfg": 1,
        "cp": 1,
        "tp": 1,
        "replicas": 1,
    }


def test_ranks_of_torchrun_and_of_srun_make_the_frames_of_one(
    run_here: Run, nano: Path, tmp_path: Path
) -> None:
    ended = run_here(*_nano_flags(nano, tmp_path / "one.npy"))
    assert ended.returncode == 0, ended.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port"]
    by_torchrun = subprocess.run(
        [
            *torchrun,
            str(launcher.free_port()),
            str(GENERAL),
            *_nano_flags(nano, tmp_path / "two.npy", "--cp_size", "2"),
        ],
        env=launcher.clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert by_torchrun.returncode == 0, by_torchrun.stderr
    tasks = launcher.start_slurm_tasks(2, GENERAL, *_nano_flags(nano, tmp_path / "slurm.npy"))
    for task in launcher.wait_for(tasks):
        assert task.status == 0, task.err
    one, two, slurm = (numpy.load(tmp_path / f"{name}.npy").astype(int) for name in ("one", "two", "slurm"))
    for many in (two, slurm):
        assert abs(many - one).max() <= 1
        assert (many != one).mean() <= 0.002
    assert json.loads((tmp_path / "slurm.json").read_text())["plan"] == {
        "cfg": 2,
        "cp": 1,
        "tp": 1,
        "replicas": 1,
    }


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--height", "100"], "--height 100"),
        (["--num_video_frames", "10"], "--num_video_frames 10"),
        (["--model", "Cosmos-9B"], "--model Cosmos-9B"),
        (["--num_devices", "2"], "--num_devices 2"),
        (["--nemo_checkpoint", "nowhere"], "--nemo_checkpoint nowhere"),
        (["--backend", "te"], "--backend te"),
        (["--precision", "fp8", "--backend", "te"], "--precision fp8 brings matrix products of its own"),
        (["--cfg_parallel", "on"], "--cfg_parallel on"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "A red \udcff ball"], "--prompt"),
        (["--sampler", "RES-2mid", "--num_steps", "1"], "--num_steps 1 --sampler RES-2mid"),
        (["--t5_cache_dir", "a", "--text_encoder_dir", "b"], "--t5_cache_dir"),
        (["--enable_prompt_upsampler"], "comes without a prompt upsampler"),
        (["--guardrail_dir", "x"], "comes without guardrails: pass --text_guard_dir too"),
    ],
)
def test_a_bad_flag_exits_2_with_one_sentence(
    run_here: Run, nano: Path, tmp_path: Path, flags: list[str], says: str
) -> None:
    ended = run_here(*_nano_flags(nano, tmp_path / "a.mp4"), *flags)
    assert ended.returncode == 2, ended.stderr
    assert says in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_models_checkpoint_exits_2_and_names_it(run_here: Run, nano: Path, tmp_path: Path) -> None:
    flags = _nano_flags(nano, tmp_path / "a.mp4")
    flags[flags.index("--model") + 1] = "Cosmos-1.0-Diffusion-7B-Text2World"
    checkpoint = [
        "--nemo_checkpoint",
        str(nano / NANO / "nemo"),
        "--tokenizer_dir",
        "Cosmos-Nano-Tokenizer-CV8x8x8",
    ]
    ended = run_here(*flags, *checkpoint, "--text_encoder_dir", "Cosmos-Nano-T5", "--disable_guardrail")
    assert ended.returncode == 2, ended.stderr
    assert NANO in ended.stderr


def _damage(nano: Path, assets: Path, fault: str) -> str:
    """A copy of the stand-in with one fault; a word that the sentence must hold."""
    shutil.copytree(nano, assets)
    weights = assets / NANO / "nemo" / "weights"
    tokenizer, text = assets / "Cosmos-Nano-Tokenizer-CV8x8x8", assets / "Cosmos-Nano-T5"
    if fault == "truncated shard":
        shard = weights / "__0_0.distcp"
        shard.write_bytes(shard.read_bytes()[:-1000])
        return "__0_0.distcp"
    if fault == "missing shard":
        (weights / "__0_0.distcp").unlink()
        return "__0_0.distcp"
    if fault == "renamed tensor":
        metadata = weights / ".metadata"
        metadata.write_bytes(metadata.read_bytes().replace(b"affline_norm", b"affline_nrom"))
        return "affline_norm.weight"
    if fault == "code in the pickle":
        (weights / ".metadata").write_bytes(pickle.dumps(print))
        return ".metadata"
    if fault == "truncated tokenizer":
        file = tokenizer / "tokenizer.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        return "tokenizer.safetensors"
    if fault == "no statistics":
        (tokenizer / "mean_std.pt").unlink()
        return "mean_std.pt"
    assert fault == "text encoder of another width"
    config = json.loads((text / "config.json").read_text())
    (text / "config.json").write_text(json.dumps({**config, "d_model": 32}))
    return "d_model"


@pytest.mark.parametrize(
    "fault",
    [
        "truncated shard",
        "missing shard",
        "renamed tensor",
        "code in the pickle",
        "truncated tokenizer",
        "no statistics",
        "text encoder of another width",
    ],
)
def test_damaged_files_exit_2_with_one_sentence_before_weights_are_read(
    run_here: Run, nano: Path, tmp_path: Path, fault: str
) -> None:
    named = _damage(nano, tmp_path / "assets", fault)
    ended = run_here(*_nano_flags(tmp_path / "assets", tmp_path / "a.mp4"))
    assert ended.returncode == 2, ended.stderr
    assert named in ended.stderr
    assert "resident" not in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "a.mp4").exists()


def test_a_nan_in_the_weights_warns_and_still_makes_the_video(
    run_here: Run, nano: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from cosmos_nemo.catalog import find_card
    from cosmos_nemo.checkpoint.reader import LazyTensor
    from cosmos_nemo.checkpoint.writer import write_torch_dist
    from cosmos_nemo.tools.standin_network import random_network

    shape = find_card(NANO).network
    weights = random_network(shape, seed=0)
    weights["final_layer.linear.weight"][0, 0] = float("nan")
    lazy = {name: LazyTensor.of(tensor) for name, tensor in weights.items()}
    write_torch_dist(tmp_path / "nan", lazy, shape=shape)
    flags = _nano_flags(nano, tmp_path / "a.npy", "--nemo_checkpoint", str(tmp_path / "nan"))
    assert run_here(*flags).returncode == 0
    assert "final_layer.linear.weight has 1 NaN" in caplog.text


def test_files_that_one_node_lacks_end_the_other_ranks_too(nano: Path, tmp_path: Path) -> None:
    flags = _nano_flags(nano, tmp_path / "a.mp4", "--cp_size", "2")
    port = str(launcher.free_port())
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    here = launcher.start(GENERAL, *flags, environment=launcher.clean_environment(RANK="0", **shared))
    flags[flags.index("--cosmos_assets_dir") + 1] = "nowhere"
    there = launcher.start(GENERAL, *flags, environment=launcher.clean_environment(RANK="1", **shared))
    started = time.monotonic()
    rank_0, rank_1 = launcher.wait_for([here, there], timeout=90)
    assert time.monotonic() - started < 60
    assert rank_1.status == 2 and "nowhere" in rank_1.err
    assert rank_0.status == 2 and "rank 1: " in rank_0.err and "nowhere" in rank_0.err


def test_idle_ranks_end_with_rank_zeros_status_at_once(nano: Path, tmp_path: Path) -> None:
    flags = _nano_flags(nano, tmp_path / "a.mp4", "--num_devices", "2", "--nemo_checkpoint", "nowhere")
    started = time.monotonic()
    ended = launcher.wait_for(launcher.start_ranks(3, GENERAL, *flags))
    assert [one.status for one in ended] == [2, 2, 2]
    assert time.monotonic() - started < 60
    assert sum("LocateError: --nemo_checkpoint nowhere" in one.err for one in ended[:2]) >= 1


def test_a_card_json_that_is_wrong_exits_2(run_here: Run, nano: Path, tmp_path: Path) -> None:
    shutil.copytree(nano, tmp_path / "assets")
    (tmp_path / "assets" / NANO / "nemo" / "card.json").write_text('{"network": {"num_layers": "4"}}')
    ended = run_here(*_nano_flags(tmp_path / "assets", tmp_path / "a.mp4"))
    assert ended.returncode == 2
    assert "card.json: network.num_layers cannot be '4'" in ended.stderr


@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["run", "dry run"])
def test_what_cannot_be_written_is_refused_before_anything_else(
    run_here: Run, nano: Path, tmp_path: Path, dry: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    ended = run_here(*_nano_flags(nano, tmp_path / "file" / "a.mp4"), *dry)
    assert ended.returncode == 2
    assert "--video_save_path" in ended.stderr and "cannot be written" in ended.stderr


def test_a_dry_run_takes_the_ranks_that_the_sizes_ask_for(run_here: Run) -> None:
    ended = run_here("--prompt", "x", "--dry_run", "--cp_size", "4", "--cfg_parallel", "on")
    assert ended.returncode == 0, ended.stderr
    assert "8 rank(s): guidance branches 2 x context parallel 4 x tensor parallel 1" in ended.stdout


def test_offline_without_files_exits_2_and_names_the_download(run_here: Run) -> None:
    ended = run_here("--prompt", "x")  # conftest.py gives every test an empty HF_HOME and HF_HUB_OFFLINE
    assert ended.returncode == 2, ended.stderr
    assert "download/nemo.py" in ended.stderr


def test_a_dry_run_prints_the_plan_of_8_ranks_without_files_or_ranks(run_here: Run) -> None:
    ended = run_here("--prompt", "x", "--dry_run", "--num_devices", "8", "--cp_size", "8")
    assert ended.returncode == 0, ended.stderr
    assert "guidance branches 1 x context parallel 8 x tensor parallel 1" in ended.stdout
    assert "56,320 tokens" in ended.stdout
    assert "72 network calls" in ended.stdout
    assert "not here" in ended.stdout


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_takes_the_others_down_within_a_minute(nano: Path, tmp_path: Path, killed: int) -> None:
    """Without torchrun, whose agent would do it: by the ranks' own watchdog."""
    flags = _nano_flags(nano, tmp_path / "a.mp4")
    flags[flags.index("--num_steps") + 1] = "100000"
    ranks = launcher.start_ranks(2, GENERAL, *flags)
    ranks[0].wait_until_it_says("denoise:")
    ranks[killed].process.send_signal(signal.SIGKILL)
    started = time.monotonic()
    survivor = launcher.wait_for(ranks, timeout=90)[1 - killed]
    assert time.monotonic() - started < 60
    assert survivor.status != 0
    assert survivor.err.strip() != ""
    assert not (tmp_path / "a.mp4").exists()


def test_a_sigterm_while_writing_removes_what_is_half_written(
    run_here: Run, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmos_nemo.stages import media

    def terminated(frames: object, path: Path, fps: int) -> None:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(media, "_write_npy", terminated)
    before = signal.getsignal(signal.SIGTERM)
    ended = run_here(*_nano_flags(nano, tmp_path / "out" / "a.npy"))
    assert ended.returncode == 143
    assert "terminated" in ended.stderr
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_ends_with_130_and_leaves_no_video(nano: Path, tmp_path: Path) -> None:
    flags = _nano_flags(nano, tmp_path / "out" / "a.mp4")
    flags[flags.index("--num_steps") + 1] = "100000"
    rank = launcher.start_ranks(1, GENERAL, *flags)[0]
    rank.wait_until_it_says("denoise:")
    rank.process.send_signal(signal.SIGINT)
    ended = launcher.wait_for([rank], timeout=60)[0]
    assert ended.status == 130, ended.err
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()
