"""Runs the check of one reference file and compares what it makes with what the file holds."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.tools.checks import Options
from cosmos_nemo.tools.checks.reference import Reference
from cosmos_nemo.tools.checks.table import CHECKS
from cosmos_nemo.tools.checks.tolerance import Rule, error_of, relative_rule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one output. Where there is no error to show there is a reason."""

    output: str
    verdict: Literal["ok", "FAIL", "absent"]
    rule: Rule | None
    error: float | None = None
    reason: str = ""


def compare(reference: Reference, options: Options) -> Iterator[Result]:
    """One result for every output of the reference that is asked for, checked or not.

    A check that fails to run fails its outputs. CheckpointError if options.weights cannot be used.
    """
    left = {name: rule for name, rule in _rules(reference, options).items() if options.wants(name)}
    check = CHECKS.get(reference.check)
    stopped = None
    if check is not None and left:
        try:
            tensors = reference.tensors()
            for name, got in check.function(reference.case, tensors, options):
                if options.wants(name):
                    yield _compared(name, got, tensors.get(f"outputs.{name}"), left.pop(name, None))
        except CheckpointError:
            raise
        except Exception as error:  # whatever it is, the other outputs and files still get their lines
            logger.exception("The check of %s stopped", reference.path.name)
            stopped = f"the check stopped with {type(error).__name__}"
    for name, rule in left.items():
        if stopped is not None:
            yield Result(output=name, verdict="FAIL", rule=rule, reason=stopped)
        else:
            reason = f"{reference.check} {'is not built' if check is None else 'does not make it'}"
            yield Result(output=name, verdict="absent", rule=rule, reason=reason)


def _compared(name: str, got: Tensor, want: Tensor | None, rule: Rule | None) -> Result:
    if want is None or rule is None:
        reason = "the file has no such output" if want is None else "made twice"
        return Result(output=name, verdict="FAIL", rule=rule, reason=reason)
    if got.shape != want.shape:
        reason = f"shape {tuple(got.shape)}, not {tuple(want.shape)}"
        return Result(output=name, verdict="FAIL", rule=rule, reason=reason)
    error = error_of(name, got.cpu(), want, kind=rule.kind)
    return Result(output=name, verdict="ok" if error <= rule.limit else "FAIL", rule=rule, error=error)


def _rules(reference: Reference, options: Options) -> dict[str, Rule]:
    if options.dtype == torch.float32 and options.device.type == "cpu":
        return {name: reference.rule_for(name) for name in reference.outputs}
    return dict.fromkeys(reference.outputs, relative_rule(options.dtype))
