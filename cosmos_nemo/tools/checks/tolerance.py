"""How far from its reference an output may be."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

KINDS = ("max_abs", "max_abs_over_std", "exact", "max_abs_levels", "relative_l2")


@dataclass(frozen=True)
class Rule:
    """One line of a reference file's `tolerance`: outputs whose name matches may be off by `value`."""

    outputs: str
    kind: str
    value: float

    def matches(self, name: str) -> bool:
        return fnmatchcase(name, self.outputs)

    @property
    def limit(self) -> float:
        return 0.0 if self.kind == "exact" else self.value


def error_of(name: str, got: Tensor, want: Tensor, *, kind: str) -> float:
    """The error of `got` in the unit of `kind`; NaN if a value is NaN where the kind has no error for it.

    exact, max_abs: largest absolute difference. max_abs_over_std: that over the standard deviation of
    `want`. max_abs_levels: in 8-bit levels, of which one is 1/127.5 in an output named normalized_*.
    relative_l2: norm of the difference over the norm of `want`. Shapes must be equal.
    """
    difference = got.double() - want.double()
    if want.numel() == 0:
        return 0.0
    if kind == "relative_l2":
        return _ratio(difference.norm(), want.double().norm())
    largest = difference.abs().max()
    if kind == "max_abs_over_std":
        return _ratio(largest, want.double().std(correction=0))
    if kind == "max_abs_levels" and name.rpartition(".")[2].startswith("normalized_"):
        return float(largest * 127.5)
    return float(largest)


def _ratio(error: Tensor, scale: Tensor) -> float:
    # A constant reference has no scale: nothing but itself is close to it.
    return 0.0 if error == 0 else float(error / scale)


def relative_rule(dtype: torch.dtype) -> Rule:
    """What replaces a file's rules, which hold for float32 on a CPU, elsewhere (golden/README.md)."""
    return Rule(outputs="*", kind="relative_l2", value=2e-2 if dtype == torch.bfloat16 else 1e-3)
