"""card.json beside a checkpoint: the fields in which it differs from the card asked for.

Standard library only.
"""

import json
from pathlib import Path
from typing import Any

from cosmos_nemo.catalog import CatalogError

CARD_FILE = "card.json"


def find_card_file(path: Path) -> Path | None:
    """card.json of the checkpoint at `path`: in the folder, beside the file, above a `weights` folder, or in
    the `nemo` folder of a repository."""
    path = path.expanduser()
    folder = path.parent if path.is_file() else path
    folders = [folder, folder.parent if folder.name == "weights" else folder / "nemo"]
    return next((f / CARD_FILE for f in folders if (f / CARD_FILE).is_file()), None)


def read_card_file(path: Path) -> dict[str, Any]:
    """What the checkpoint's card.json says, {} if it has none; CatalogError if it is no JSON object."""
    file = find_card_file(path)
    if file is None:
        return {}
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CatalogError(f"{file} is no JSON: {error}. Write it anew or remove it") from error
    if not isinstance(fields, dict):
        raise CatalogError(f'{file} is no JSON object like {{"network": {{"num_layers": 4}}}}')
    return fields


def write_card_file(folder: Path, fields: dict[str, Any]) -> None:
    """Writes `fields` as the card.json of the checkpoint in `folder`; nothing if there are none."""
    if fields:
        (folder / CARD_FILE).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
