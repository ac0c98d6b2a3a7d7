"""Reference files: NAME.safetensors with tensors, NAME.json saying what they are (golden/README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path

from cosmos_nemo.tools.checks import Case, Tensors
from cosmos_nemo.tools.checks.tolerance import KINDS, Rule


class ReferenceFileError(ValueError):
    """A reference file that is missing, damaged or not understood."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference file whose .json and tensor names have been checked; tensors are read when asked for."""

    path: Path
    check: str
    case: Case
    rules: tuple[Rule, ...]
    outputs: tuple[str, ...]
    """Names of the reference outputs, without `outputs.`."""

    def tensors(self) -> Tensors:
        from safetensors.torch import load_file

        return load_file(self.path)

    def rule_for(self, name: str) -> Rule:
        return next(rule for rule in self.rules if rule.matches(name))


def read_reference(path: Path) -> Reference:
    """The reference at `path` (NAME.safetensors). ReferenceFileError if it cannot be checked against."""
    if path.suffix != ".safetensors":
        raise ReferenceFileError(
            f"{path} is no reference file: name the .safetensors, its .json lies beside it."
        )
    names = _tensor_names(path)
    case = read_case(path)
    check, rules = _check_name(case, path), _rules(case, path)
    outputs = tuple(sorted(name.removeprefix("outputs.") for name in names if name.startswith("outputs.")))
    for name in outputs:
        if not any(rule.matches(name) for rule in rules):
            raise ReferenceFileError(f"{_beside(path)}: no rule of `tolerance` is for output {name}.")
    _check_siblings(case, path)
    return Reference(path=path, check=check, case=case, rules=rules, outputs=outputs)


def read_case(path: Path) -> Case:
    """The .json beside the reference file `path`."""
    beside = _beside(path)
    try:
        case = json.loads(beside.read_text())
    except FileNotFoundError as error:
        raise ReferenceFileError(f"{beside} is missing: it says what {path.name} holds.") from error
    except (OSError, ValueError) as error:
        raise ReferenceFileError(f"{beside} cannot be read as JSON: {error}.") from error
    if not isinstance(case, dict):
        raise ReferenceFileError(f"{beside} holds no JSON object.")
    return case


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _tensor_names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ReferenceFileError(f"{path} is missing.")
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ReferenceFileError(f"{path} is damaged or no safetensors file: {error}.") from error


def _check_name(case: Case, path: Path) -> str:
    check = case.get("check")
    if not isinstance(check, str):
        raise ReferenceFileError(f"{_beside(path)} has no `check`, the kind of check this file is for.")
    return check


def _check_siblings(case: Case, path: Path) -> None:
    siblings = case.get("weights_from", {})
    if not isinstance(siblings, dict):
        raise ReferenceFileError(
            f"{_beside(path)}: `weights_from` must map a name to a file beside this one."
        )
    for sibling in siblings.values():
        _tensor_names(path.parent / sibling)
        read_case(path.parent / sibling)


def _rules(case: Case, path: Path) -> tuple[Rule, ...]:
    try:
        rules = tuple(Rule(str(r["outputs"]), r["kind"], float(r["value"])) for r in case["tolerance"])
    except (KeyError, TypeError, ValueError) as error:
        raise ReferenceFileError(
            f"{_beside(path)} has no `tolerance` list of outputs, kind and value ({error!r})."
        ) from error
    for rule in rules:
        if rule.kind not in KINDS:
            raise ReferenceFileError(
                f"{_beside(path)}: tolerance kind {rule.kind!r} is unknown, it is one of {KINDS}."
            )
    return rules
