"""The Dockerfile, its page, its smoke test and what starts it, without an engine or an image."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_layering import ROOT
from tests.test_project import CORE, text_of

FOLDER = ROOT / ".ci/container"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"container_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


smoke, emulate = script("smoke"), script("emulate")
VERSIONS: dict[str, str] = smoke.PINS["versions"]
FROM_THE_CONTAINER = {"torch", "megatron-core"}
"""Core dependencies that are never added: those of a package index would replace NVIDIA's builds."""


def verdicts(found: list[object]) -> list[str]:
    return [finding.verdict for finding in found]


def test_the_five_packages_that_matter_are_pinned() -> None:
    assert list(VERSIONS) == ["torch", "megatron-core", "transformer-engine", "nemo_toolkit", "nemo_run"]


def test_the_dockerfile_names_the_image_and_the_versions_of_the_table() -> None:
    text = " ".join(re.sub(r"\n# ?", " ", text_of("Dockerfile")).split())
    assert f"ARG NEMO_IMAGE={smoke.PINS['image']} FROM ${{NEMO_IMAGE}}" in text
    for package, pin in VERSIONS.items():
        assert re.search(rf"\b{package} {re.escape(pin)}[,.]", text), package
    assert f"Python {smoke.PINS['python']} " in text


def test_the_page_has_the_image_and_the_table() -> None:
    text = text_of("docs/container.md")
    assert f"`{smoke.PINS['image']}`" in text
    rows = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", text, re.MULTILINE))
    assert rows == {"Python": smoke.PINS["python"], **VERSIONS}


def test_the_refusal_of_an_old_megatron_core_names_the_same_image() -> None:
    assert smoke.PINS["image"] in text_of("cosmos_nemo/__init__.py")


def test_the_containers_versions_are_in_the_ranges_that_the_package_asks_for() -> None:
    for requirement in CORE:
        if requirement.name in VERSIONS:
            assert requirement.specifier.contains(VERSIONS[requirement.name]), requirement


def test_every_core_dependency_is_the_containers_or_added_if_missing() -> None:
    (packages,) = re.findall(r"for package in (.*?);", text_of("Dockerfile").replace("\\\n", " "))
    names = {requirement.name for requirement in CORE}
    assert names >= FROM_THE_CONTAINER
    assert sorted(packages.split()) == sorted(names - FROM_THE_CONTAINER)


@pytest.mark.parametrize(
    ("version", "pin", "right"),
    [
        ("2.9.0a0+50eac811a6.nv25.09", "2.9.0", True),
        ("2.9.0", "2.9.0", True),
        ("2.9.1", "2.9.0", False),
        ("2.10.0", "2.9.0", False),
        ("0.15.0rc7", "0.15.0", True),
        ("0.15.0+c4d3e1f", "0.15.0", True),
        ("0.16.0", "0.15.0", False),
        ("2.9.0+70f53666", "2.9", True),
        ("2.90.0", "2.9", False),
        ("2", "2.9", False),
        ("unknown", "2.9", False),
    ],
)
def test_versions_agree_by_their_release_numbers(version: str, pin: str, right: bool) -> None:
    assert smoke.agrees(version, pin) is right


def test_a_version_that_drifted_fails_and_names_both() -> None:
    installed = {**VERSIONS, "megatron-core": "0.16.0"}
    found = list(smoke.drift(VERSIONS, installed=installed.get))
    assert verdicts(found) == ["ok", "FAIL", "ok", "ok", "ok"]
    assert found[1].text == "megatron-core is 0.16.0: the package was designed for 0.15.0"


def test_a_package_that_is_missing_fails() -> None:
    found = list(smoke.drift(VERSIONS, installed=lambda _: None))
    assert verdicts(found) == ["FAIL"] * 5
    assert "torch is not installed" in found[0].text


def test_a_package_may_be_left_out_only_where_it_is_absent() -> None:
    absent = {**VERSIONS, "transformer-engine": None}
    assert "note" in verdicts(smoke.drift(VERSIONS, without=["transformer-engine"], installed=absent.get))
    present = list(smoke.drift(VERSIONS, without=["transformer-engine"], installed=VERSIONS.get))
    assert verdicts(present).count("FAIL") == 1


def test_a_missing_dependency_fails_and_one_out_of_range_is_noted() -> None:
    installed = {"numpy": "1.26.4", "diffusers": "0.35.0"}
    needs = ["numpy>=1.26,<3", "diffusers>=0.36,<1", "better-profanity>=0.7", "pytest>=8; extra == 'test'"]
    found = list(smoke.requirements(needs, installed=installed.get))
    assert verdicts(found) == ["note", "FAIL"]
    assert "diffusers 0.35.0 is not in the tested" in found[0].text
    assert found[1].text == "better-profanity is not installed: the Dockerfile has to add it"


def test_a_step_that_fails_shows_the_end_of_its_output() -> None:
    found = smoke.call("a step", [sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    assert found.verdict == "FAIL" and found.text == "a step: exit status 3\n      why"
    assert smoke.call("a step", [sys.executable, "-c", ""]).verdict == "ok"
    assert "cannot be started" in smoke.call("a step", ["/no/such/program"]).text


def test_a_step_that_hangs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "SECONDS", 0.2)
    found = smoke.call("a step", [sys.executable, "-c", "import time; time.sleep(60)"])
    assert found.text == "a step: not after 0.2 seconds"


def test_steps_are_run_without_the_network() -> None:
    program = "import os, sys; sys.exit(os.environ['HF_HUB_OFFLINE'] != '1')"
    assert smoke.call("a step", [sys.executable, "-c", program]).verdict == "ok"


def test_the_files_that_the_smoke_test_names_exist(tmp_path: Path) -> None:
    for has_gpu in (False, True):
        commands = list(smoke.commands(tmp_path, tool="cosmos-nemo", has_gpu=has_gpu))
        named = [word for _, command in commands for word in command if word.startswith(f"{ROOT}/")]
        assert len(named) > 3 and [path for path in named if not Path(path).exists()] == []
        assert any("--backend" in command for _, command in commands) is has_gpu


def test_the_image_has_what_the_smoke_test_needs() -> None:
    left_out = text_of(".dockerignore").split()
    needed = {".ci", "tests", "tests/golden", "inference", "recipes", "cosmos_nemo", "constraints.txt"}
    assert left_out and not needed & set(left_out)


@pytest.mark.parametrize(("frames", "level", "status"), [(9, 200, 1), (0, 0, 1)])
def test_a_video_that_is_too_short_or_blank_fails(
    frames: int, level: int, status: int, tmp_path: Path
) -> None:
    import imageio.v3
    import numpy

    from cosmos_nemo.catalog import find_card

    count = frames or find_card(smoke.MODEL).video.num_frames
    video = numpy.full((count, 32, 32, 3), level, dtype=numpy.uint8)
    video[:, ::2] = 0
    imageio.v3.imwrite(tmp_path / "a.mp4", video, fps=24)
    command = [sys.executable, "-c", smoke.READS_VIDEO, str(tmp_path / "a.mp4")]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == status


def test_a_good_video_passes(tmp_path: Path) -> None:
    import imageio.v3
    import numpy

    from cosmos_nemo.catalog import find_card

    video = numpy.zeros((find_card(smoke.MODEL).video.num_frames, 32, 32, 3), dtype=numpy.uint8)
    video[:, ::2] = 200
    imageio.v3.imwrite(tmp_path / "a.mp4", video, fps=24)
    command = [sys.executable, "-c", smoke.READS_VIDEO, str(tmp_path / "a.mp4")]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == 0


def test_the_smoke_test_fails_where_the_package_is_not_installed() -> None:
    command = [sys.executable, str(FOLDER / "smoke.py")]
    environment = {**os.environ, "PATH": "/no/such/folder"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "FAIL  the command cosmos-nemo is not on the PATH" in done.stdout
    assert re.search(r"^\w+ +torch (is )?\d", done.stdout, re.MULTILINE)
    assert "of the steps failed" in done.stdout.splitlines()[-1]


Started = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Started:
    """`make container-test` where only these programs exist, a line of bash each; see `calls`."""

    def run(*, programs: dict[str, str], **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "bin").mkdir()
        for name, line in programs.items():
            path = tmp_path / "bin" / name
            path.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n{line}\n', encoding="utf-8")
            path.chmod(0o755)
        for name in ("bash", "env", "dirname", "basename", "timeout"):
            (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
        return subprocess.run(
            [FOLDER / "test"],
            env={"PATH": str(tmp_path / "bin"), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text(encoding="utf-8").splitlines()


def test_without_an_engine_it_says_so_in_one_sentence_and_fails(start: Started) -> None:
    done = start(programs={})
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("No container engine answers here (asked: docker podman):")


def test_a_client_without_its_daemon_is_no_engine(start: Started) -> None:
    done = start(programs={"docker": "exit 1"}, IMAGE="some")
    assert done.returncode == 1 and "No container engine answers here" in done.stderr


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_either_engine_runs_the_smoke_test_in_the_image(engine: str, start: Started, tmp_path: Path) -> None:
    done = start(programs={engine: ":"}, IMAGE="some:1")
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path)[-1] == f"{engine} run --rm --ipc=host some:1 python .ci/container/smoke.py"


@pytest.mark.parametrize(
    ("engine", "flags"), [("docker", "--gpus all"), ("podman", "--device nvidia.com/gpu=all")]
)
def test_the_container_gets_the_gpus_that_are_there(
    engine: str, flags: str, start: Started, tmp_path: Path
) -> None:
    assert start(programs={engine: ":", "nvidia-smi": ":"}, IMAGE="some").returncode == 0
    assert f"--ipc=host {flags} some python" in calls(tmp_path)[-1]


def test_a_broken_driver_gives_the_container_no_gpu(start: Started, tmp_path: Path) -> None:
    assert start(programs={"docker": ":", "nvidia-smi": "exit 9"}, IMAGE="some").returncode == 0
    assert "--gpus" not in calls(tmp_path)[-1]


def test_podman_is_taken_where_docker_has_no_daemon_and_engine_chooses(
    start: Started, tmp_path: Path
) -> None:
    assert start(programs={"docker": "exit 1", "podman": ":"}, IMAGE="some").returncode == 0
    assert calls(tmp_path)[-1].startswith("podman run")


def test_an_engine_may_be_chosen(start: Started, tmp_path: Path) -> None:
    assert start(programs={"docker": ":", "podman": ":"}, IMAGE="some", ENGINE="podman").returncode == 0
    assert calls(tmp_path)[-1].startswith("podman run")


def test_the_containers_failure_is_the_commands(start: Started) -> None:
    assert start(programs={"docker": '[ "$1" != run ]'}, IMAGE="some").returncode == 1


def test_an_image_that_is_missing_or_not_said_is_asked_for_and_never_built(
    start: Started, tmp_path: Path
) -> None:
    done = start(programs={"docker": '[ "$1" = info ]'}, IMAGE="some")
    assert done.returncode == 1 and "docker has no image some: build or pull it first" in done.stderr
    assert [call.split()[1] for call in calls(tmp_path)] == ["info", "image"]


def test_an_engine_without_an_image_is_not_enough(start: Started) -> None:
    done = start(programs={"docker": ":"})
    assert done.returncode == 1 and "make container-test IMAGE=cosmos-nemo" in done.stderr


def test_inside_the_image_no_engine_is_asked(start: Started, tmp_path: Path) -> None:
    done = start(programs={"docker": ":", "python": "exit 7"}, COSMOS_NEMO_IMAGE="1")
    assert done.returncode == 7
    assert calls(tmp_path) == ["python .ci/container/smoke.py"]
    assert "ENV COSMOS_NEMO_IMAGE=1\n" in text_of("Dockerfile")


def test_make_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAKELEVEL", "MAKEFLAGS"):  # of the make that started the tests
        monkeypatch.delenv(name, raising=False)
    command = ["make", "--dry-run", "container-test", "IMAGE=some", "ENGINE=podman"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == 'IMAGE="some" ENGINE="podman" .ci/container/test'


def test_the_emulation_repeats_the_dockerfile_and_nothing_else() -> None:
    found = list(emulate.steps(text_of("Dockerfile")))
    assert [command[:-1] for _, command in found] == [
        ["/bin/bash", "-o", "errexit", "-o", "pipefail", "-c"]
    ] * 2
    assert all(environment == {"COSMOS_NEMO_IMAGE": "1"} for environment, _ in found)
    assert "pip install --no-cache-dir --no-deps --editable ." in found[0][1][-1]
    assert "better-profanity; do" in found[0][1][-1] and "\\" not in found[0][1][-1]
    assert "import cosmos_nemo, cosmos_nemo_recipes" in found[1][1][-1]


def test_lines_are_joined_as_docker_joins_them() -> None:
    text = "FROM a\n# a comment\nRUN one \\\n# between\n  two\nENV A=1 B='x y'\nRUN three\n"
    assert list(emulate.steps(text)) == [
        ({}, ["/bin/sh", "-c", "one   two"]),
        ({"A": "1", "B": "x y"}, ["/bin/sh", "-c", "three"]),
    ]


@pytest.mark.parametrize(
    "line", ['RUN ["a"]', "RUN --mount=type=cache a", "RUN <<EOF", "COPY a b", "USER me", "ADD a b"]
)
def test_an_instruction_that_cannot_be_repeated_is_refused(line: str) -> None:
    with pytest.raises(emulate.DockerfileError):
        list(emulate.steps(f"FROM a\n{line}\n"))


def test_the_emulation_installs_the_pins_but_for_transformer_engine() -> None:
    assert emulate.container_requirements(
        {"torch": "2.9.0", "nemo_run": "0.7", "transformer-engine": "2.9"}
    ) == [
        "torch==2.9.0",
        "nemo_run==0.7.*",
    ]
    assert len(emulate.container_requirements(VERSIONS)) == len(VERSIONS) - 1


def test_the_emulation_needs_an_interpreter_and_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert emulate.main(["--python", "python9.9"]) == 2
    assert "There is no python9.9" in capsys.readouterr().err
    (tmp_path / "kept").touch()
    assert emulate.main(["--python", sys.executable, "--folder", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_step_of_the_emulation_that_fails_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def fail(command: list[str], **_: object) -> None:
        ran.append(command)
        raise subprocess.CalledProcessError(4, command)

    monkeypatch.setattr(emulate, "say", fail)
    assert emulate.main(["--python", sys.executable, "--folder", str(tmp_path / "new")]) == 1
    assert len(ran) == 1 and "The emulation failed" in capsys.readouterr().err
    assert (tmp_path / "new/cosmos_nemo/Dockerfile").is_file()
