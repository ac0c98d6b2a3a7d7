"""What `nemo cosmos` makes of its words, in this process: nemo_run's other entry points are not loaded."""

import io
import sys
from pathlib import Path
from typing import Any

import fiddle
import nemo_run as run
import pytest

from cosmos_nemo_recipes import cosmos as _registered  # noqa: F401
from cosmos_nemo_recipes.context import CosmosContext
from cosmos_nemo_recipes.generate import generate

PROMPT = "request.prompt=A red ball moves to the left on a dark background."


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without NeMo's entry points, which take 14 seconds to import, in folders of its own."""
    import nemo_run.cli.api
    import nemo_run.config

    for name in ("_load_entrypoints", "_load_workspace"):
        monkeypatch.setattr(nemo_run.cli.api, name, lambda: None)
    monkeypatch.setattr(nemo_run.config, "_NEMORUN_HOME", str(tmp_path_factory.mktemp("nemo_run")))
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # read by nemo_run's shell commands
    monkeypatch.chdir(tmp_path)


def context(factory: str | None = "cosmos_nano_text2world", **options: Any) -> CosmosContext:
    return CosmosContext(name="generate", factory=factory, **options)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        context(**options).cli_execute(generate, words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_factory_is_the_one_named_or_the_near_ones_are(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal([PROMPT], capsys, factory="cosmos_nano_text2wrld")
    assert "--factory cosmos_nano_text2wrld does not exist. Did you mean cosmos_nano_text2world" in said
    assert "--factory is missing. Pass one of cosmos_diffusion_7b" in refusal([PROMPT], capsys, factory=None)


def test_a_field_is_the_one_named_or_the_near_ones_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "request.promt does not exist. Did you mean request.prompt" in refusal(["request.promt=x"], capsys)
    assert "request.prompt is missing. Pass request.prompt=" in refusal([], capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["executor=torchrn"], "executor=torchrn does not exist. Pass one of torchrun, docker, slurm"),
        (
            ["executor=torchrun", "executor.ntask_per_node=2"],
            "executor.ntask_per_node does not exist. Did you mean executor.ntasks_per_node?",
        ),
        (["executor=slurm"], "executor.account is missing."),
        (
            ["executor=slurm", "executor.account=a", "executor.container_image=i"],
            "request.video_path=Cosmos-Nano-Text2World.mp4 is relative",
        ),
        (["executor=docker"], "request.video_path=Cosmos-Nano-Text2World.mp4 is relative"),
        (["executor=torchrun", "executor.ntasks_per_node=two"], "ntasks_per_node"),
    ],
)
def test_an_executor_that_cannot_be_meant_is_told(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal([PROMPT, *words], capsys)


def test_executors_have_the_fields_that_were_set() -> None:
    slurm = fiddle.build(
        context().parse_executor(
            "slurm",
            "account=me",
            "partition=gpu",
            "nodes=2",
            "ntasks_per_node=8",
            "gpus_per_node=8",
            "time=02:00:00",
            "container_image=registry/image:1",
            'container_mounts=["/data:/data"]',
            "retries=3",
        )
    )
    assert (slurm.nodes, slurm.ntasks_per_node, slurm.gpus_per_node, slurm.retries) == (2, 8, 8, 3)
    assert (slurm.time, slurm.container_mounts) == ("02:00:00", ["/data:/data"])
    docker = fiddle.build(context().parse_executor("docker", "container_image=mine", "volumes=['/a:/a']"))
    assert (docker.container_image, docker.volumes, docker.num_gpus) == ("mine", ["/a:/a"], -1)


def test_a_workspaces_own_executor_serves_too() -> None:
    def mine() -> run.Config[run.LocalExecutor]:
        return run.Config(run.LocalExecutor, ntasks_per_node=3)

    run.cli.factory(mine, target=run.LocalExecutor, name="mine")
    assert fiddle.build(context().parse_executor("mine")).ntasks_per_node == 3


def test_values_of_a_yaml_file_come_before_those_of_the_words(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("request:\n  seed: 5\n  num_steps: 9\n")
    task = context(yaml=str(tmp_path / "mine.yaml")).parse_fn(generate, [PROMPT, "request.num_steps=7"])
    assert (task.request.seed, task.request.num_steps) == (5, 7)


def test_a_batch_needs_neither_prompt_nor_path() -> None:
    words = ["batch_input_path=/data/p.jsonl", "video_save_folder=/data/v"]
    task = context("cosmos_nano_video2world").parse_fn(generate, words)
    request = fiddle.build(task).keywords["request"]
    assert (request.prompt, request.visual_input) == ("", Path("/data/v"))
    assert request.video_path == Path("/data/v/Cosmos-Nano-Video2World.mp4")


def test_a_dry_run_here_prints_the_plan_and_makes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    context(dryrun=True).cli_execute(generate, [PROMPT])
    assert "latent 5 x 16 x 16, 320 tokens" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_for_slurm_leaves_a_script_that_can_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        PROMPT,
        "executor=slurm",
        "executor.account=me",
        "executor.nodes=2",
        "executor.ntasks_per_node=4",
    ]
    context(dryrun=True).cli_execute(generate, words)
    [told] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Written: ")]
    script = Path(told.rpartition(" ")[2])
    text = script.read_text()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4", "#SBATCH --requeue"} <= set(text.splitlines())
    [srun] = [line for line in text.splitlines() if line.startswith("srun")]
    assert Path(srun.split()[-1]).is_file()
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in text


def test_a_failed_job_is_a_failed_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [PROMPT, "setup.nemo_checkpoint=nowhere", "executor=torchrun"]
    with pytest.raises(SystemExit) as ended:
        context(skip_confirmation=True).cli_execute(generate, words)
    assert ended.value.code == 1
    assert "generate ended as FAILED; its logs:" in capsys.readouterr().err
