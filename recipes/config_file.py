"""Fields of a recipe in a YAML or JSON file: read with --yaml, written with --to-yaml and --to-json.

A value in a file means what it means as a word of the command line; nothing in it is executed.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fiddle

from cosmos_nemo_recipes.overrides import RecipeError, leaves, missing_fields

FACTORY = "_factory_"


def read_words(path: Path) -> tuple[str | None, list[str]]:
    """The factory that the file names, if it does, and its fields as words of the command line.

    RecipeError if it cannot be read or is no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"--yaml {path} cannot be read: {error}") from None
    if not isinstance(content, Mapping):
        raise RecipeError(f"--yaml {path} holds no fields: write e.g. `request: {{seed: 3}}`.")
    fields = dict(content)
    factory = fields.pop(FACTORY, None)
    return factory, list(_words(fields))


def write(path: Path, config: fiddle.Buildable, *, factory: str) -> None:
    """Writes the factory and all fields that have a value, as YAML if the name says so, else as JSON."""
    import yaml

    missing = missing_fields(config)
    content: dict[str, Any] = {FACTORY: factory}
    for name, value in leaves(config).items():
        if name in missing:
            continue
        *above, last = name.split(".")
        place = content
        for part in above:
            place = place.setdefault(part, {})
        place[last] = _plain(value)
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    text = (
        yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if is_yaml
        else json.dumps(content, indent=1)
    )
    path.write_text(f"{text.rstrip()}\n", encoding="utf-8")


def _words(fields: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}={','.join(map(str, value))}"
        else:
            yield f"{prefix}{name}={'none' if value is None else value}"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return sorted(value) if isinstance(value, frozenset) else value
