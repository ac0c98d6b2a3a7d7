"""`nemo cosmos ...` and `nemo run ...` as a person types them, by nemo_run in processes of its own."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import numpy

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.cli import parse_general
from cosmos_nemo.launch import run as run_door
from tests.parallel import launcher

NANO = launcher.ROOT / "cosmos_nemo/assets/Cosmos-Nano-Text2World"
PROMPT = "A red ball moves to the left on a dark background."
FACTORY = ("--factory", "cosmos_nano_text2world")


@dataclass(frozen=True)
class Ended:
    status: int
    said: str


def nemo(folder: Path, *words: str, timeout: int = 240) -> Ended:
    """`nemo WORDS` in `folder`, which is nemo_run's home too; not as installed: as its module."""
    environment = {**launcher.clean_environment(), "NEMORUN_HOME": str(folder / "home"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", "from nemo_run.__main__ import app; app()", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return Ended(done.returncode, done.stdout)


def test_help_lists_every_factory(tmp_path: Path) -> None:
    ended = nemo(tmp_path, "cosmos", "--help")
    assert ended.status == 0, ended.said
    words = set(ended.said.replace(",", " ").replace(".", " ").split())
    for card in CARDS.values():
        name = card.name.lower().replace("1.0-", "").replace("-", "_")
        assert name in words
    assert "cosmos_diffusion_7b_text2world_finetune" in words


def test_two_ranks_of_a_torchrun_executor_make_the_frames_of_one_process(tmp_path: Path) -> None:
    request = (f"request.prompt={PROMPT}", "request.num_steps=4", "request.seed=3")
    executor = ("executor=torchrun", "executor.ntasks_per_node=2")
    ended = nemo(
        tmp_path, "cosmos", "generate", *FACTORY, *request, "request.video_path=two.npy", *executor, "--yes"
    )
    assert ended.status == 0, ended.said
    assert "Cosmos-Nano-Text2World on 2 rank(s)" in ended.said
    flags = [
        "--prompt",
        PROMPT,
        "--num_steps",
        "4",
        "--seed",
        "3",
        "--video_save_path",
        str(tmp_path / "one.npy"),
    ]
    assert run_door(lambda: parse_general(["--model", "Cosmos-Nano-Text2World", *flags]), environ={}) == 0
    one, two = (numpy.load(tmp_path / f"{name}.npy").astype(int) for name in ("one", "two"))
    assert one.std() > 5
    assert numpy.abs(one - two).max() <= 1


def test_a_post_trained_checkpoint_makes_its_subject_and_run_is_another_name(tmp_path: Path) -> None:
    weights = tmp_path / "nemo_experiments/robot/checkpoints/epoch=39-step=199/weights"
    shutil.copytree(NANO / "nemo/weights", weights)
    words = (
        f"request.prompt={PROMPT}",
        "request.num_steps=2",
        "request.subject_name=teal robot",
        f"setup.nemo_checkpoint={weights.relative_to(tmp_path)}",
    )
    ended = nemo(tmp_path, "run", "generate", *FACTORY, *words, "--yes")
    assert ended.status == 0, ended.said
    assert (tmp_path / "Cosmos-Nano-Text2World.txt").read_text().startswith("A video of sks teal robot. ")
    assert (tmp_path / "Cosmos-Nano-Text2World.mp4").stat().st_size > 1000


def test_both_commands_are_installed_and_quick_to_import() -> None:
    found = {point.name: point.value for point in entry_points(group="nemo_run.cli")}
    assert found["cosmos"] == "cosmos_nemo_recipes.cosmos"
    assert found["run"] == "cosmos_nemo_recipes.run"
    program = (
        "import sys, time; import nemo_run, nemo_run.cli.api; start = time.process_time();"
        "import cosmos_nemo_recipes.cosmos, cosmos_nemo_recipes.run;"
        "print(time.process_time() - start, *{'nemo', 'megatron', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    assert float(seconds) < 1  # beside nemo_run's own, which are about two
    assert loaded == []
