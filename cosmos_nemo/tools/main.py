"""The console script `cosmos-nemo`: one command per file of this folder, imported when it is called."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from cosmos_nemo.console import set_up_logging

COMMANDS = {
    "models": "the released models this version knows",
    "doctor": "what this machine can run",
    "inspect": "what a checkpoint holds",
    "convert": "a checkpoint into another format",
    "standin": "nano-size random weights in a model's released layout",
    "verify": "this package against reference outputs",
    "prepare-data": "videos into the samples that post-training reads",
    "post-train": "trains a diffusion model on prepared data",
    "make-nano": "the embedded nano models, from nothing",
    "sheet": "frames of some videos in one picture",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `cosmos-nemo ARGV`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="cosmos-nemo", description="Cosmos world models: tools.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if argv[:1] == [name]:
            _module(name).add_arguments(command)
    args = parser.parse_args(argv)
    set_up_logging(verbose=False)
    return int(_module(args.command).run(args))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"cosmos_nemo.tools.{name.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
