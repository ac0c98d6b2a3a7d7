"""What lies in a T5 folder, judged from names, headers and lengths, without reading its weights."""

import hashlib
import zipfile
from pathlib import Path

from cosmos_nemo.checkpoint.fingerprint import fingerprint
from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

_TOKENIZER = "tokenizer.json"
"""The fast tokenizer's file. A folder with spiece.model alone would need sentencepiece to convert it."""
_SMALL_FILES = (
    "config.json",
    _TOKENIZER,
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers prefers them."""


def check_text_folder(folder: Path, *, text_dim: int) -> None:
    """CheckpointError unless `folder` is a complete T5 whose embeddings have `text_dim` numbers.

    Needs: config.json, a tokenizer, and weights whose every shard exists and is as long as it says it is.
    """
    config = read_json(folder / "config.json", lacking="is no T5 folder")
    if config.get("model_type") != "t5":
        raise CheckpointError(
            f"{folder} holds a {config.get('model_type')} model where a T5 is needed: "
            "config.json must say model_type t5."
        )
    if config.get("d_model") != text_dim:
        raise CheckpointError(
            f"{folder} makes text embeddings of {config.get('d_model')} numbers (d_model in config.json), "
            f"but the model takes {text_dim}: it belongs to another model."
        )
    if not (folder / _TOKENIZER).is_file():
        raise CheckpointError(f"{folder} has no tokenizer: {_TOKENIZER} is missing.")
    for path in weight_files(folder):
        _check_length(path)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers would read the weights from; CheckpointError if one is missing."""
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} has no weights: none of {', '.join(_WEIGHTS)} is there.")
    if found.suffix != ".json":
        return (found,)
    shards = sorted(set(read_json(found, lacking="is no T5 folder").get("weight_map", {}).values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing or not shards:
        raise CheckpointError(
            f"{found} names {len(shards)} shards, of which {len(missing)} are missing"
            + (f", first: {missing[0]}. Download the folder again." if missing else ".")
        )
    return tuple(folder / name for name in shards)


def text_folder_identity(folder: Path) -> str:
    """Hex id of everything that decides an embedding: weights (sampled), config and tokenizer (whole)."""
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    for path in weight_files(folder):
        digest.update(fingerprint(path).encode() + b"\0")
    return digest.hexdigest()


def _check_length(path: Path) -> None:
    if path.suffix == ".safetensors":
        open_checkpoint(path)
        return
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if path.stat().st_size == 0 or (is_archive and not zipfile.is_zipfile(path)):
        raise CheckpointError(f"{path} is truncated (the end of the archive is missing): download it again.")
