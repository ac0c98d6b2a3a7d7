"""The Dockerfile's steps in a plain virtual environment, where no container engine is: then the smoke test.

First comes what the container has of pins.toml, from the package index in the same versions, each with its
dependencies; then the ENV and RUN instructions of the Dockerfile as they stand there, in a copy of the
checkout; then smoke.py. Transformer Engine is left out: it is built for one CUDA and does nothing without a
GPU. Takes six to ten minutes and 8 GB, most of it the CUDA libraries that torch 2.9.0 brings.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = tomllib.loads((Path(__file__).parent / "pins.toml").read_text(encoding="utf-8"))
WITHOUT = "transformer-engine"
_EXTRAS = {"nemo_toolkit": "[lightning,run]"}
"""What the recipes and the checkpoint writer need of it."""


class DockerfileError(ValueError):
    """An instruction of the Dockerfile that this script cannot repeat."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction and what follows it; lines are joined as docker does, comments left out."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        yield name.upper(), rest.strip()


def steps(text: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The command of each RUN with the variables that ENV has set by then.

    DockerfileError for an instruction that is not known here.
    """
    shell, environment = ["/bin/sh", "-c"], {}
    for name, rest in instructions(text):
        if name == "RUN":
            if rest.startswith(("[", "--", "<<")):
                raise DockerfileError(f"RUN {rest[:40]}: only the plain form is repeated here.")
            yield dict(environment), [*shell, rest]
        elif name == "SHELL":
            shell = [word.strip('",[]') for word in shlex.split(rest.replace(",", " "))]
        elif name == "ENV":
            environment.update(word.split("=", 1) for word in shlex.split(rest))
        elif name == "COPY" and rest != ". .":
            raise DockerfileError(f"COPY {rest}: only the whole checkout is copied here.")
        elif name not in ("ARG", "FROM", "WORKDIR", "COPY"):
            raise DockerfileError(f"{name}: this instruction is not repeated here.")


def container_requirements(versions: Mapping[str, str]) -> list[str]:
    """What the container has, for pip: a pin of fewer numbers than a release has takes its newest."""
    return [
        f"{name}{_EXTRAS.get(name, '')}=={pin if pin.count('.') > 1 else f'{pin}.*'}"
        for name, pin in versions.items()
        if name != WITHOUT
    ]


def copy_checkout(folder: Path) -> None:
    """What git does not ignore, as `COPY . .` would take it."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def say(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> None:
    """Runs one step; CalledProcessError if it fails."""
    print(f"+ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, check=True)
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def emulate(python: str, folder: Path) -> None:
    """All steps below `folder`, which must be empty."""
    venv, checkout = folder / "venv", folder / "cosmos_nemo"
    checkout.mkdir(parents=True)
    copy_checkout(checkout)
    inside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    inside |= {"VIRTUAL_ENV": str(venv), "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    say([python, "-m", "venv", str(venv)], cwd=folder, environment=inside)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet"]
    say([*pip, *container_requirements(PINS["versions"])], cwd=folder, environment=inside)
    for environment, command in steps((checkout / "Dockerfile").read_text(encoding="utf-8")):
        say(command, cwd=checkout, environment=inside | environment)
    smoke = [str(venv / "bin/python"), str(checkout / ".ci/container/smoke.py"), "--without", WITHOUT]
    say(smoke, cwd=folder, environment=inside)


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 if every step succeeded."""
    parser = argparse.ArgumentParser(
        description="The Dockerfile's steps in a virtual environment, then smoke.py."
    )
    parser.add_argument(
        "--python", default=f"python{PINS['python']}", help="interpreter (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="to keep everything in; default: a temporary one")
    args = parser.parse_args(argv)
    python = shutil.which(args.python)
    if python is None:
        print(
            f"There is no {args.python}, the container's Python: pass --python another one.", file=sys.stderr
        )
        return 2
    if args.folder is not None and args.folder.exists() and any(args.folder.iterdir()):
        print(f"--folder {args.folder} is not empty.", file=sys.stderr)
        return 2
    try:
        if args.folder is not None:
            emulate(python, args.folder.resolve())
        else:
            with tempfile.TemporaryDirectory() as folder:
                emulate(python, Path(folder))
    except (subprocess.CalledProcessError, DockerfileError) as error:
        print(f"The emulation failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
