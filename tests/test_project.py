"""pyproject.toml, constraints.txt, Makefile, Dockerfile, .ci/run and the doors' --help fit together."""

import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import cosmos_nemo
from tests.doors.instant import help_of
from tests.test_layering import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {
    extra: [Requirement(text) for text in texts] for extra, texts in PROJECT["optional-dependencies"].items()
}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_dependency_is_pinned_inside_its_range() -> None:
    pins = constraints()
    # Transformer Engine and FlashAttention 3 are built for one torch and one CUDA; no CPU set can hold them.
    wanted = [*CORE, *(r for extra, rs in EXTRAS.items() if extra not in ("te", "flash") for r in rs)]
    outside = [
        str(r) for r in wanted if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0.0.0.1"))
    ]
    assert outside == []


def test_constraints_are_plain_pins_without_extras() -> None:
    lines = [line for line in text_of("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(constraints()) == len(lines)


@pytest.mark.parametrize(
    ("name", "version", "admitted"),
    [
        ("torch", "2.11.0", True),
        ("torch", "2.13.0", True),
        ("transformers", "5.23.0", True),
        ("huggingface-hub", "1.33.0", True),
        ("diffusers", "0.42.1", True),
        ("numpy", "2.4.6", True),
        ("megatron-core", "0.15.0", True),
        ("megatron-core", "0.14.0", False),
        ("megatron-core", "0.16.1", False),
    ],
)
def test_ranges_admit_the_other_tested_machines(name: str, version: str, admitted: bool) -> None:
    (requirement,) = (r for r in CORE if canonicalize_name(r.name) == name)
    assert requirement.specifier.contains(version) is admitted


def test_python_3_11_and_3_12_are_supported_and_no_other() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in ("3.10.14", "3.11.7", "3.12.1", "3.13.0") if supported.contains(v)] == [
        "3.11.7",
        "3.12.1",
    ]


def test_no_file_names_a_package_index() -> None:
    names = ("pyproject.toml", "setup.py", "constraints.txt", "Makefile", "Dockerfile", ".ci/run")
    pattern = r"--(extra-)?index-url|--find-links|--trusted-host|https?://"
    assert [name for name in names if re.search(pattern, text_of(name))] == []


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "cosmos_nemo").rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()] == []


def test_worker_processes_import_these_tests_and_not_those_of_nemo_toolkit() -> None:
    program = "import sys, tests; sys.exit(tests.__file__ != sys.argv[1])"
    command = [sys.executable, "-c", program, str(ROOT / "tests/__init__.py")]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_the_changelog_starts_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", text_of("CHANGELOG.md"), re.MULTILINE)
    assert newest and newest[1] == cosmos_nemo.__version__


def test_the_readme_starts_with_demo_and_test() -> None:
    block = re.search(r"```bash\n(.*?)```", text_of("README.md"), re.DOTALL)
    assert block and re.findall(r"^make \w+", block[1], re.MULTILINE) == ["make demo", "make test"]


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    pages = ["README.md", "CONTRIBUTING.md", ".ci/run", "docs/container.md"]
    named = {name for page in pages for name in re.findall(r"\bmake ([a-z]+)\b[`\n ]", text_of(page))}
    assert {"demo", "test", "lint", "typecheck"} <= named
    assert named - targets == set()


def test_the_dockerfile_replaces_nothing_of_the_container() -> None:
    installs = re.findall(r"pip install[^&\n]*", text_of("Dockerfile"))
    assert installs
    assert [install for install in installs if "--no-deps" not in install] == []
    assert "--upgrade" not in text_of("Dockerfile")


def import_with_megatron_core(version: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Imports the package where only a megatron-core of this version is installed ("" for none at all)."""
    if version:
        metadata = folder / f"megatron_core-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(
            f"Metadata-Version: 2.1\nName: megatron-core\nVersion: {version}\n", encoding="utf-8"
        )
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-S", "-c", "import cosmos_nemo"]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["0.14.0", "0.9.0", "0.14.1rc2"])
def test_an_old_megatron_core_is_refused_in_one_sentence(version: str, tmp_path: Path) -> None:
    done = import_with_megatron_core(version, tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(
        f"ImportError: cosmos_nemo needs megatron-core 0.15 or newer, but {version} is installed"
    )


@pytest.mark.parametrize(
    "version", ["0.15", "0.15.0rc8", "0.15.0+c4d3e1f", "0.15.3", "0.16.0rc0", "1.0.0", ""]
)
def test_a_new_or_a_missing_megatron_core_is_no_reason_to_refuse(version: str, tmp_path: Path) -> None:
    done = import_with_megatron_core(version, tmp_path)
    assert done.returncode == 0, done.stderr


DOORS = [
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ("inference", "download")
        for path in (ROOT / folder).glob("*.py")
    ),
    *(["-m cosmos_nemo.tools.main"] if (ROOT / "cosmos_nemo/tools/main.py").exists() else []),
]


@pytest.mark.parametrize("door", DOORS)
def test_help_of_a_door_is_instant(door: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--" in help_of(*door.split())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor seconds: the wall clock would measure the other test worker too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


SUMMARY = "=== 3 passed in 0.10s ==="


def run_ci(folder: Path, *, failing: str) -> subprocess.CompletedProcess[str]:
    """.ci/run with a make that fails for the targets in `failing`, adding a line of its own as make does."""
    (folder / ".ci").mkdir()
    (folder / ".ci/run").write_text(text_of(".ci/run"), encoding="utf-8")
    make = folder / "bin/make"
    make.parent.mkdir()
    make.write_text(
        "#!/usr/bin/env bash\n"
        'echo "make $*" >> calls\n'
        f'case "$1" in test) echo "{SUMMARY}" ;; *) echo checked ;; esac\n'
        f'for target in {failing}; do case " $* " in *" $target "*)\n'
        '  echo "make: *** [Makefile:70: $target] Error 1" >&2; exit 2 ;; esac; done\n',
        encoding="utf-8",
    )
    make.chmod(0o755)
    # Nothing else of this machine.
    for program in ("bash", "dirname", "env", "grep"):
        (make.parent / program).symlink_to(str(shutil.which(program)))
    environment = {**os.environ, "PATH": str(make.parent)}
    command = ["bash", ".ci/run"]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("failing", ["", "lint", "typecheck", "test", "lint typecheck test"])
def test_ci_fails_when_any_part_fails_and_ends_with_pytests_summary(failing: str, tmp_path: Path) -> None:
    done = run_ci(tmp_path, failing=failing)
    assert done.stdout.splitlines()[-1] == SUMMARY
    assert (done.returncode == 0) is (failing == "")
    assert targets_of(tmp_path) == ["lint", "typecheck", "test"]


def targets_of(folder: Path) -> list[str]:
    """What .ci/run has made, in this order."""
    return [call.split()[1] for call in (folder / "calls").read_text(encoding="utf-8").splitlines()]


def test_ci_can_be_run_and_takes_the_slow_tests_too() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "make test PYTEST_ARGS=\"-m ''\"" in text_of(".ci/run")
