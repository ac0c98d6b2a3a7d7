"""What `nemo cosmos` makes of its words, in this process: nemo_run's other entry points are not loaded."""

import contextlib
import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fiddle
import nemo_run as run
import pytest

from cosmos_nemo_recipes import cosmos as _registered  # noqa: F401
from cosmos_nemo_recipes.context import CosmosContext
from cosmos_nemo_recipes.generate import generate
from tests.parallel.launcher import clean_environment

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
    assert "request.prompt must be given: request.prompt=VALUE" in refusal([], capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["executor=torchrn"], "executor=torchrn does not exist. Pass one of torchrun, docker, slurm"),
        (
            ["executor=torchrun", "executor.ntask_per_node=2"],
            "executor.ntask_per_node does not exist. Did you mean executor.ntasks_per_node?",
        ),
        (["executor=slurm"], "executor.account must be given"),
        (
            ["executor=slurm", "executor.account=a", "executor.container_image=i"],
            "request.video_path=Cosmos-Nano-Text2World.mp4 is relative",
        ),
        (["executor=docker"], "request.video_path=Cosmos-Nano-Text2World.mp4 is relative"),
        (["executor=torchrun", "executor.ntasks_per_node=two"], "executor.ntasks_per_node=two cannot be"),
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


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ([], {"requeue": True}),
        (["additional_parameters={'reservation': 'r1'}"], {"requeue": True, "reservation": "r1"}),
        (["additional_parameters={}"], {"requeue": True}),
        (["additional_parameters={'requeue': False, 'a': None, 'b': 0}"], {"b": 0}),
        (["additional_parameters={'no_requeue': True}"], {"no_requeue": True}),
        (["additional_parameters={'no-requeue': True}"], {"no-requeue": True}),
        (["additional_parameters=None"], None),
    ],
)
def test_parameters_of_slurm_are_added_to_our_own_and_count_more(
    words: list[str], parameters: dict[str, Any] | None
) -> None:
    slurm = fiddle.build(context().parse_executor("slurm", "account=me", *words))
    assert slurm.additional_parameters == parameters


def test_fields_of_a_workspaces_own_executor_are_replaced_as_nemo_run_does() -> None:
    def own_cluster() -> run.Config[run.SlurmExecutor]:
        return run.Config(run.SlurmExecutor, account="me", additional_parameters={"reservation": "r1"})

    run.cli.factory(own_cluster, target=run.SlurmExecutor, name="own_cluster")
    built = fiddle.build(context().parse_executor("own_cluster", "additional_parameters={'nice': 5}"))
    assert built.additional_parameters == {"nice": 5}


def test_a_workspaces_own_executor_serves_too() -> None:
    def mine() -> run.Config[run.LocalExecutor]:
        return run.Config(run.LocalExecutor, ntasks_per_node=3)

    run.cli.factory(mine, target=run.LocalExecutor, name="mine")
    assert fiddle.build(context().parse_executor("mine")).ntasks_per_node == 3


def test_values_of_a_yaml_file_come_before_those_of_the_words(tmp_path: Path) -> None:
    text = "request:\n  seed: 5\n  num_steps: 9\n  prompt: os.getcwd\nsetup: {offload: all, cp_size: null}\n"
    (tmp_path / "mine.yaml").write_text(text)
    task = context(yaml=str(tmp_path / "mine.yaml")).parse_fn(generate, ["request.num_steps=7"])
    assert (task.request.seed, task.request.num_steps, task.request.prompt) == (5, 7, "os.getcwd")
    assert (task.setup.offload, task.setup.cp_size) == (frozenset({"all"}), None)


@pytest.mark.parametrize("option", ["to_yaml", "to_json"])
def test_what_is_written_to_a_file_is_read_from_it(option: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine.{option[3:]}"
    words = ["request.guidance=1.5", "setup.offload=denoise", "setup.tokenizer_dir=t", "request.seed=0"]
    context(**{option: str(path)}).cli_execute(generate, words)  # without a prompt: a template
    again = context(None, yaml=str(path)).parse_fn(generate, [PROMPT])
    assert again == context().parse_fn(generate, [PROMPT, *words])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("request: {promt: x}", "request.promt does not exist. Did you mean request.prompt"),
        ("- a", "holds no fields"),
        ("request: [", "mine.yaml cannot be read"),
        ("_factory_: cosmos_9b", "--factory cosmos_9b does not exist"),
    ],
)
def test_a_file_that_cannot_be_meant_is_told(
    text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    factory = None if "_factory_" in text else "cosmos_nano_text2world"
    assert sentence in refusal([PROMPT], capsys, factory=factory, yaml=str(tmp_path / "mine.yaml"))
    assert "nowhere.yaml cannot be read" in refusal([PROMPT], capsys, yaml="nowhere.yaml")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([PROMPT, "request.num_frames=20"], "request.num_frames 20 does not fit"),
        ([PROMPT, "setup.backend=jax"], "setup.backend jax is unknown"),
        (["batch_input_path=nope.jsonl"], "nope.jsonl does not exist"),
        ([PROMPT, "request.height=100"], "request.height 100 does not fit"),
    ],
)
def test_what_a_job_would_refuse_is_refused_before_it_is_started(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal([*words, "executor=torchrun"], capsys, dryrun=True)
    slurm = ["executor=slurm", "executor.account=me"]
    assert sentence in refusal([*words, *slurm], capsys, dryrun=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([PROMPT, "executor.nodes=2"], "executor.nodes=2 has no effect without executor=NAME"),
        ([PROMPT, "plugins=a"], "plugins=a has no effect without executor=NAME"),
        ([PROMPT, "executor=torchrun", "plugins=a"], "Plugin a not found"),
        ([PROMPT, "setup.model=Cosmos-Predict1-4B"], "setup.model is the factory's"),
        ([PROMPT, "video_save_folder=a"], "video_save_folder is for a batch"),
        ([PROMPT, "batch_input_path=a"], "request.prompt has no effect beside batch_input_path"),
        (["request.video_path=a.mp4", "batch_input_path=a"], "request.video_path has no effect beside"),
        ([PROMPT, "executor=torchrun", "executor.nodes=two"], "executor.nodes=two cannot be read"),
        ([PROMPT, "executor=torchrun", "executor.env_vars.A=b"], "executor.env_vars.A=b cannot be read"),
    ],
)  # fmt: skip
def test_words_that_exclude_each_other_or_mean_nothing_are_told(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal(words, capsys)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"detach": True, "skip_confirmation": True}, "--detach is for a cluster"),
        ({}, "Pass --yes"),
        ({"load": "a"}, "--load is not offered here"),
        ({"repl": True}, "--repl is not offered here"),
        ({"to_toml": "a.toml"}, "--to-toml is not offered here"),
    ],
)
def test_an_option_that_would_do_nothing_is_told(
    options: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refusal([PROMPT, "executor=torchrun"], capsys, **options)


def test_a_name_that_is_no_folder_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        CosmosContext(name="my run", factory="cosmos_nano_text2world").cli_execute(generate, [PROMPT])
    assert "--name 'my run' becomes a folder" in capsys.readouterr().err


def test_one_video_in_a_container_needs_one_absolute_path() -> None:
    chosen = context()
    chosen.executor = run.DockerExecutor(container_image="mine")
    task = chosen.parse_fn(generate, [PROMPT, "request.video_path=/data/a.mp4"])
    assert fiddle.build(task).keywords["request"].video_path == Path("/data/a.mp4")


def test_a_batch_needs_neither_prompt_nor_path() -> None:
    words = ["batch_input_path=/data/p.jsonl", "video_save_folder=/data/v"]
    task = context("cosmos_nano_video2world").parse_fn(generate, words)
    request = fiddle.build(task).keywords["request"]
    assert (request.prompt, request.visual_input) == ("", Path("/data/v"))
    assert request.video_path == Path("/data/v/Cosmos-Nano-Video2World.mp4")


def test_an_upsampler_that_looks_at_a_frame_needs_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    factory = "cosmos_predict1_7b_video2world"
    task = context(factory).parse_fn(generate, ["setup.upsamples=true", "request.visual_input=/a.png"])
    assert fiddle.build(task).keywords["request"].prompt == ""
    said = refusal(["request.visual_input=/a.png"], capsys, factory=factory)
    assert "request.prompt must be given" in said
    said = refusal(["setup.upsamples=true"], capsys, factory="cosmos_predict1_7b_text2world")
    assert "request.prompt must be given" in said


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
        "executor.additional_parameters={'reservation': 'r1'}",
    ]
    context(dryrun=True).cli_execute(generate, words)
    [told] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Written: ")]
    script = Path(told.rpartition(" ")[2])
    text = script.read_text()
    lines = set(text.splitlines())
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4", "#SBATCH --requeue"} <= lines
    assert "#SBATCH --reservation=r1" in lines
    [srun] = [line for line in text.splitlines() if line.startswith("srun")]
    assert Path(srun.split()[-1]).is_file()
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in text


@pytest.mark.slow
def test_a_failed_job_is_a_failed_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [PROMPT, "setup.nemo_checkpoint=nowhere", "executor=torchrun"]
    with pytest.raises(SystemExit) as ended:
        context(skip_confirmation=True).cli_execute(generate, words)
    assert ended.value.code == 1
    assert "generate ended as FAILED; its logs:" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_takes_its_ranks_with_it(how: signal.Signals, tmp_path: Path) -> None:
    words = [PROMPT, "request.num_steps=3000", "executor=torchrun", "executor.ntasks_per_node=2"]
    program = (
        "import nemo_run.cli.api as api\n"
        "api._load_entrypoints = api._load_workspace = lambda: None\n"
        "import cosmos_nemo_recipes.cosmos\n"
        "from cosmos_nemo_recipes.context import CosmosContext\n"
        "from cosmos_nemo_recipes.generate import generate\n"
        "context = CosmosContext(name='g', factory='cosmos_nano_text2world', skip_confirmation=True)\n"
        f"context.cli_execute(generate, {words!r})\n"
    )
    script = tmp_path / "command.py"
    script.write_text(program)
    marks = {
        "COSMOS_TEST_MARK": str(tmp_path),
        "NEMORUN_HOME": str(tmp_path / "home"),
        "PYTHONUNBUFFERED": "1",
    }
    with (tmp_path / "said").open("wb") as said:
        command = subprocess.Popen(
            [sys.executable, str(script)], env={**clean_environment(), **marks}, stdout=said, stderr=said,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    _wait(lambda: "denoise:" in (tmp_path / "said").read_text(errors="replace"), seconds=120)
    command.send_signal(how)
    assert command.wait(60) == 1
    _wait(lambda: _marked(tmp_path) == [], seconds=20)


def _wait(comes: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not comes():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _marked(folder: Path) -> list[int]:
    """Processes that the command started, and theirs: the environment tells."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and f"COSMOS_TEST_MARK={folder}".encode() in (entry / "environ").read_bytes()
            ):
                found.append(int(entry.name))
    return found
