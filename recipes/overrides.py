"""`request.seed=3`: a word of the command line as the value of a field, read by the field's own type.

nemo_run's parser would look for a factory, a module or a Python expression in every value, a prompt among
them, and says of a misspelt field only that there is none.
"""

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fiddle
import nemo_run as run

from cosmos_nemo.request import RequestError

_TRUTHS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_NONE = ("none", "null")


class RecipeError(RequestError):
    """An override, an executor or a path that cannot be meant."""


def apply_overrides(config: fiddle.Buildable, words: Sequence[str]) -> None:
    """Sets the fields of `config` and of the configs in it. RecipeError, naming the nearest, for one there is
    not, or for a value that is none of the field's type."""
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            raise RecipeError(f"{word!r} is no override. Write FIELD=VALUE, e.g. {_example(config)}=...")
        owner, name = _owner(config, path)
        setattr(owner, name, parse(text, type_of(owner, name), path))


def missing_fields(config: fiddle.Buildable, prefix: str = "") -> list[str]:
    """Dotted names of the fields that have neither a value nor a default."""
    found, given = [], fiddle.ordered_arguments(config)
    for name, field in _fields(config).items():
        if isinstance(given.get(name), fiddle.Buildable):
            found += missing_fields(given[name], f"{prefix}{name}.")
        elif name not in given and field.default is field.empty:
            found.append(prefix + name)
    return found


def leaves(config: fiddle.Buildable, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all fields that hold a value, and the values, defaults too."""
    found: dict[str, Any] = {}
    for name in _fields(config):
        value = getattr(config, name, None)
        found |= (
            leaves(value, f"{prefix}{name}.")
            if isinstance(value, fiddle.Buildable)
            else {prefix + name: value}
        )
    return found


def parse(text: str, kind: Any, path: str) -> Any:
    """`text` as a value of the type `kind`; RecipeError naming the field at `path` if it is none."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if type(None) in inside and text.lower() in _NONE:
            return None
        (one,) = (each for each in inside if each is not type(None))
        return parse(text, one, path)
    if origin is frozenset:
        words = (word.strip(" '\"") for word in text.strip("[](){}").split(","))
        return frozenset(word for word in words if word)
    try:
        if kind is bool:
            return _TRUTHS[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        meant = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise RecipeError(f"{path}={text} is not {meant}.") from None


def type_of(config: fiddle.Buildable, name: str) -> Any:
    """The annotated type of a field."""
    return typing.get_type_hints(config.__fn_or_cls__)[name]


def _owner(config: fiddle.Buildable, path: str) -> tuple[fiddle.Buildable, str]:
    """The config that has the field at a dotted path, and the field's name."""
    owner, parts = config, path.split(".")
    for depth, part in enumerate(parts):
        if part not in _fields(owner):
            raise RecipeError(_no_such_field(config, owner, ".".join(parts[: depth + 1]), path))
        is_last = depth == len(parts) - 1
        value = None if is_last else getattr(owner, part, None)
        if is_last:
            break
        if not isinstance(value, fiddle.Buildable):
            raise RecipeError(f"{path} does not exist: {'.'.join(parts[: depth + 1])} has no fields.")
        owner = value
    if isinstance(getattr(owner, parts[-1], None), fiddle.Buildable):
        inside = ", ".join(f"{path}.{name}" for name in _fields(getattr(owner, parts[-1])))
        raise RecipeError(f"{path} has fields of its own: {inside}. Set one of them.")
    return owner, parts[-1]


def _no_such_field(config: fiddle.Buildable, owner: fiddle.Buildable, wrong: str, path: str) -> str:
    prefix = wrong.rpartition(".")[0]
    here = [f"{prefix}.{name}" if prefix else name for name in _fields(owner)]
    anywhere = [name for name in leaves(config) if name.rpartition(".")[2] == path.rpartition(".")[2]]
    near = anywhere or difflib.get_close_matches(path, leaves(config), n=2, cutoff=0.8)
    ways = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(here)}."
    return f"{path} does not exist. {ways}"


def _fields(config: fiddle.Buildable) -> Mapping[str, Any]:
    return config.__signature_info__.parameters


def _example(config: fiddle.Buildable) -> str:
    return next(iter(leaves(config)))


def first_name(word: str) -> str:
    """`executor` of `executor.env_vars[...]=...`."""
    return word.partition("=")[0].partition(".")[0].partition("[")[0]


def check_name(config: fiddle.Buildable, word: str, *, prefix: str) -> None:
    """RecipeError, naming the nearest, for a word whose first name is no field of `config`."""
    name = first_name(word)
    if name not in _fields(config):
        near = difflib.get_close_matches(name, _fields(config), n=3)
        ways = f"Did you mean {' or '.join(f'{prefix}.{each}' for each in near)}?" if near else ""
        raise RecipeError(f"{prefix}.{name} does not exist. {ways}".rstrip())


def place_paths(config: fiddle.Buildable, folder: Path | None, prefix: str = "") -> None:
    """Takes relative paths from `folder`; None, of a job that runs elsewhere, is RecipeError for one."""
    for name in _fields(config):
        value = getattr(config, name, None)
        if isinstance(value, fiddle.Buildable):
            place_paths(value, folder, f"{prefix}{name}.")
        elif isinstance(value, Path) and not value.is_absolute():
            if folder is not None and value.parts[:1] and value.parts[0].startswith("~"):
                value = value.expanduser()
            elif folder is None:
                raise RecipeError(
                    f"{prefix}{name}={value} is relative, but the job runs in a container or on another "
                    "machine. Pass a path as it is called there, below one of the executor's mounts."
                )
            setattr(config, name, folder / value)


def make_serializable(config: fiddle.Buildable) -> None:
    """Puts a config into the place of every path, which is how fiddle takes them along."""
    for name in _fields(config):
        value = getattr(config, name, None)
        if isinstance(value, fiddle.Buildable):
            make_serializable(value)
        elif isinstance(value, Path):
            setattr(config, name, run.Config(Path, str(value)))
