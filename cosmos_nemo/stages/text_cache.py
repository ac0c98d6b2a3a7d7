"""Text embeddings on disk, so that a prompt met before needs no 11-billion-parameter encoder.

L text length, D text width.
"""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """One prompt as the network sees it; rows past the prompt's end are zero."""

    text_LD: Tensor
    num_tokens: int
    """Tokens of the whole prompt, its end mark included; more than L when the prompt was cut."""
    kept_characters: int
    """Characters of the prompt that reached the encoder."""


def cache_key(*, prompt: str, encoder: str, dtype: torch.dtype, text_length: int) -> str:
    """sha256 over all that decides an embedding; `encoder` is `text_folder_identity` of its folder."""
    parts = [prompt, encoder, str(dtype), text_length]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class TextCache:
    """A folder with one safetensors file per prompt, named by its key. Prompts themselves are not stored.

    Nothing is ever deleted: an entry of the released models takes 1 MiB in bfloat16. Empty the folder at
    will. Several processes may share it: entries appear whole, by a rename.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str, *, shape: tuple[int, int], dtype: torch.dtype) -> EncodedText | None:
        """The entry, or None if there is none; one that is damaged or of another form is reported."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                text_LD = file.get_tensor("text_LD")
            entry = EncodedText(
                text_LD=text_LD,
                num_tokens=int(facts["num_tokens"]),
                kept_characters=int(facts["kept_characters"]),
            )
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("Text cache entry %s is damaged (%s): encoding the prompt again", path, error)
            return None
        if tuple(text_LD.shape) != shape or text_LD.dtype != dtype:
            logger.warning(
                "Text cache entry %s holds %s %s, expected %s %s: encoding the prompt again",
                *(path, tuple(text_LD.shape), text_LD.dtype, shape, dtype),
            )
            return None
        return entry

    def write(self, key: str, entry: EncodedText) -> None:
        """Stores the entry; a folder that cannot be written is reported, never an error."""
        content = save(
            {"text_LD": entry.text_LD.detach().cpu().contiguous()},
            {"num_tokens": str(entry.num_tokens), "kept_characters": str(entry.kept_characters)},
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_whole(self._path(key), content)
        except OSError as error:
            logger.warning("Text cache %s cannot be written (%s): going on without", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _write_whole(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
