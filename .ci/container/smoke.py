"""The smoke test of the container: whether what is in it is what the package was designed for, and works.

Runs inside the image, from any folder, with the Python that the package is installed in. A line per step; the
exit status is 1 if any failed. Nothing is downloaded, and nothing is written but a temporary folder.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (as that of old containers is)
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"This container has Python {found}, cosmos_nemo needs 3.11 or 3.12: start from a newer one.")

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = tomllib.loads((Path(__file__).parent / "pins.toml").read_text(encoding="utf-8"))
MODEL = "Cosmos-Nano-Text2World"
SECONDS = 1200
"""Of one step: the video takes a minute on two cores."""

IMPORTS = """
import importlib, pkgutil
from cosmos_nemo.parallel.startup import prepare_process
prepare_process()
for top in ("cosmos_nemo", "cosmos_nemo_recipes"):
    for module in pkgutil.walk_packages(importlib.import_module(top).__path__, f"{top}."):
        importlib.import_module(module.name)
"""
"""prepare_process: by itself Megatron-core 0.15.0 does not import where PyTorch has CUDA but finds no GPU."""
READS_VIDEO = f"""
import sys, imageio.v3
from cosmos_nemo.catalog import find_card
video = imageio.v3.imread(sys.argv[1])
sys.exit(len(video) != find_card({MODEL!r}).video.num_frames or not video.std() > 1)
"""
SEES_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


@dataclass(frozen=True)
class Finding:
    """What one step found. `verdict` is "ok", "note" or "FAIL"."""

    verdict: str
    text: str


def installed_version(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def agrees(version: str, pin: str) -> bool:
    """Whether the release numbers of `version` begin with those of `pin`; its build is not compared."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    numbers = release[0].split(".") if release else []
    wanted = pin.split(".")
    return numbers[: len(wanted)] == wanted


def drift(
    pins: Mapping[str, str],
    *,
    without: Collection[str] = (),
    installed: Callable[[str], str | None] = installed_version,
) -> Iterator[Finding]:
    """One finding a pin; a package of `without` must be absent, so that nobody leaves out what is there."""
    for package, pin in pins.items():
        version = installed(package)
        if package in without:
            yield (
                Finding("note", f"{package} is left out (designed for {pin})")
                if version is None
                else Finding("FAIL", f"{package} was to be left out, but {version} is installed")
            )
        elif version is None:
            yield Finding("FAIL", f"{package} is not installed: the package was designed for {pin}")
        elif agrees(version, pin):
            yield Finding("ok", f"{package} {version}")
        else:
            yield Finding("FAIL", f"{package} is {version}: the package was designed for {pin}")


def requirements(
    texts: Sequence[str], *, installed: Callable[[str], str | None] = installed_version
) -> Iterator[Finding]:
    """What the package asks for. A version out of range is a note: the container's is never replaced."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            yield Finding("FAIL", f"{requirement.name} is not installed: the Dockerfile has to add it")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                "note", f"{requirement.name} {version} is not in the tested {requirement.specifier}"
            )


def commands(folder: Path, *, tool: str, has_gpu: bool) -> Iterator[tuple[str, list[str]]]:
    """What is run, by what it shows. `-P` keeps the checkout off the path: the installed package is meant."""
    python, golden, video = [sys.executable, "-P"], ROOT / "tests/golden", folder / "smoke.mp4"
    network = str(golden / "predict1_dit_tiny.safetensors")
    make = [sys.executable, str(ROOT / "inference/general.py"), "--model", MODEL]
    yield "every module of the package and the recipes is imported", [*python, "-c", IMPORTS]
    yield f"cosmos-nemo doctor finds that {MODEL} can run", [tool, "doctor", "--model", MODEL]
    yield (
        f"a video is made on the {'GPU' if has_gpu else 'CPU'}",
        [*make, "--prompt", "A red ball moves to the left.", "--video_save_path", str(video)],
    )
    yield "the video has all its frames, and a picture in them", [*python, "-c", READS_VIDEO, str(video)]
    yield "the network agrees with its reference numbers", [tool, "verify", network]
    yield (
        "so it does from a NeMo checkpoint",
        [tool, "verify", network, "--weights", str(golden / "nemo_text_torch_dist")],
    )
    if has_gpu:
        for backend in ("torch", "te"):
            flags = ["--device", "cuda", "--dtype", "bfloat16", "--backend", backend]
            yield f"so it does on the GPU, back end {backend}", [tool, "verify", network, *flags]


def call(name: str, command: Sequence[str]) -> Finding:
    """Runs a step without the network; of one that fails, the end of what it printed is told."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Finding("FAIL", f"{name}: not after {SECONDS} seconds")
    except OSError as error:
        return Finding("FAIL", f"{name}: {command[0]} cannot be started ({error.strerror})")
    if done.returncode == 0:
        return Finding("ok", name)
    end = "".join(f"\n      {line}" for line in done.stdout.strip().splitlines()[-12:])
    return Finding("FAIL", f"{name}: exit status {done.returncode}{end}")


def run_commands() -> Iterator[Finding]:
    """Each step of `commands` in a process of its own."""
    tool = shutil.which("cosmos-nemo")
    if tool is None:
        yield Finding("FAIL", "the command cosmos-nemo is not on the PATH: the package is not installed")
        return
    has_gpu = call("", [sys.executable, "-c", SEES_GPU]).verdict == "ok"
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(Path(folder), tool=tool, has_gpu=has_gpu):
            yield call(name, command)


def findings(without: Collection[str]) -> Iterator[Finding]:
    """All steps, in order."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield from drift({"Python": PINS["python"]}, installed=lambda _: python)
    yield from drift(PINS["versions"], without=without)
    needs = metadata.requires("cosmos-nemo") if installed_version("cosmos-nemo") is not None else None
    if needs is None:
        yield Finding("FAIL", "cosmos-nemo is not installed")
    else:
        yield from requirements(needs)
    yield from run_commands()


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=f"Smoke test of an image made from {PINS['image']}.")
    parser.add_argument(
        "--without", action="append", default=[], choices=list(PINS["versions"]), help="a pin that is absent"
    )
    args = parser.parse_args(argv)
    failed = 0
    for finding in findings(args.without):
        print(f"{finding.verdict:<4}  {finding.text}", flush=True)
        failed += finding.verdict == "FAIL"
    print(
        f"{failed} of the steps failed." if failed else "The container is as it was designed for, and works."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
