"""`cosmos-nemo verify`: this package's own modules against reference numbers made elsewhere."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_nemo.parallel.startup import prepare_process

if TYPE_CHECKING:
    import torch

    from cosmos_nemo.tools.checks import Options
    from cosmos_nemo.tools.checks.compare import Result
    from cosmos_nemo.tools.checks.reference import Reference


class FlagError(ValueError):
    """A flag that does not fit this machine or the files."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `cosmos-nemo verify`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="NAME.safetensors, NAME.json beside it"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="checkpoint in place of the weights in the file"
    )
    parser.add_argument("--only", action="append", metavar="GLOB", help="outputs to check; may be repeated")
    parser.add_argument(
        "--backend", choices=("torch", "te"), default="torch", help="back end of the networks"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="dtype of the networks"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Prints a line per output. 0: all are right; 1: some are not, or there are none; 2: bad file or flag."""
    prepare_process()
    import torch

    from cosmos_nemo.checkpoint.reader import CheckpointError
    from cosmos_nemo.parallel.groups import stop
    from cosmos_nemo.tools.checks.compare import compare
    from cosmos_nemo.tools.checks.reference import ReferenceFileError, read_reference

    verdicts = set()
    try:
        references = [read_reference(path) for path in args.files]
        plans = [(reference, _options(args, reference)) for reference in references]
        with torch.no_grad():
            for reference, options in plans:
                for result in compare(reference, options):
                    print(_line(reference, result), flush=True)
                    verdicts.add(result.verdict)
    except (ReferenceFileError, CheckpointError, FlagError) as error:
        print(f"cosmos-nemo verify: {error}", file=sys.stderr)
        return 2
    finally:
        stop()
    if not verdicts:
        print(
            "cosmos-nemo verify: nothing was checked: no output is in the files and in --only.",
            file=sys.stderr,
        )
    return 0 if verdicts == {"ok"} else 1


def _options(args: argparse.Namespace, reference: "Reference") -> "Options":
    import torch

    from cosmos_nemo.tools.checks import Options
    from cosmos_nemo.tools.checks.table import CHECKS

    check = CHECKS.get(reference.check)
    if args.weights is not None and not args.weights.exists():
        raise FlagError(f"--weights {args.weights} does not exist.")
    if args.weights is not None and check is not None and not check.takes_weights:
        raise FlagError(f"--weights has no effect on {reference.path.name}: verify it in a run without.")
    device = _device(args.device)
    if args.backend == "te" and device.type != "cuda":
        raise FlagError("--backend te needs a GPU: add --device cuda, or leave the back end to torch.")
    return Options(
        folder=reference.path.parent,
        weights=args.weights,
        backend=args.backend,
        dtype=getattr(torch, args.dtype),
        device=device,
        only=tuple(args.only or ["*"]),
    )


def _device(name: str) -> "torch.device":
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FlagError(f"--device {name} cannot be used ({reason}). Leave it out for the CPU.") from error


def _line(reference: "Reference", result: "Result") -> str:
    width = max(map(len, reference.outputs))
    error = "-" if result.error is None else f"{result.error:.2e}"
    tolerance = "-" if result.rule is None else f"{result.rule.kind} {result.rule.limit:g}"
    verdict = f"{result.verdict}: {result.reason}" if result.reason else result.verdict
    return f"{reference.path.name}  {result.output:<{width}}  {error:>8}  {tolerance:<22}  {verdict}"
