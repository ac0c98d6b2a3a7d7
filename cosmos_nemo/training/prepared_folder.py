"""A folder of prepared samples, in the layout of NeMo's prepare_dataset.py (spec/nemo-cosmos1.md, 5).

Of each sample `i`: i.video_latent.pth [C, T, H, W], i.t5_text_embeddings.pth [L, D], i.t5_text_mask.pth [L],
each with or without a leading axis of 1, and i.info.json {height, width, fps, num_frames, ...}.
"""

import hashlib
import json
import math
import pickle
import re
import zipfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import CARDS, ModelCard, Task, WanTokenizerShape
from cosmos_nemo.training.data import Batch, DataError, check_indices

LATENT, TEXT, MASK, INFO = "video_latent.pth", "t5_text_embeddings.pth", "t5_text_mask.pth", "info.json"
PARTS = (LATENT, TEXT, MASK, INFO)
SETTINGS_FILE = "prepared.json"
"""How the folder's samples were made, if `cosmos-nemo prepare-data` made them."""

SAME_FPS = 0.01
"""Frame rates that differ by less, as 29.97 and 30 do, count as one."""


def sample_path(folder: Path, name: str | int, part: str) -> Path:
    """The file of one sample, e.g. `folder/3.info.json`."""
    return folder / f"{name}.{part}"


class PreparedFolder:
    """The samples of a folder, numbered in the order of their names; a Dataset on the CPU.

    Making one reads headers only. DataError, naming the file, if a sample lacks a file, if one is damaged, or
    if shapes or frame rates are not those of the first sample.
    """

    def __init__(self, folder: Path, *, cache_bytes: int = 0) -> None:
        """cache_bytes: samples stay in memory once read, up to this much; the others are read each time."""
        self.folder, self.cache_bytes = folder, cache_bytes
        self.names = _sample_names(folder)
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._cached_bytes = 0
        self._latent_shape, self._text_shape, self.fps = self._facts(self.names[0])
        for name in self.names[1:]:
            self._compare(name)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identity(self) -> str:
        """Of the names, and of the content of the first and the last sample."""
        digest = hashlib.sha256("/".join(self.names).encode())
        for name, part in product((self.names[0], self.names[-1]), (LATENT, TEXT)):
            digest.update(sample_path(self.folder, name, part).read_bytes())
        return digest.hexdigest()

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """C, T, H, W."""
        channels, frames, height, width = self._latent_shape
        return channels, frames, height, width

    @property
    def text_shape(self) -> tuple[int, int]:
        """L, D."""
        length, width = self._text_shape
        return length, width

    def batch(self, indices: Sequence[int]) -> Batch:
        check_indices(indices, num_samples=len(self))
        samples = [self._sample(index) for index in indices]
        return Batch(
            latent_BCTHW=torch.stack([latent_CTHW for latent_CTHW, _ in samples]),
            text_BLD=torch.stack([text_LD for _, text_LD in samples]),
            fps=self.fps,
        )

    def check(self, card: ModelCard) -> None:
        """DataError unless the network of `card` can be trained on these samples."""
        network, (channels, frames, height, width) = card.network, self.latent_shape
        latent = sample_path(self.folder, self.names[0], LATENT)
        if channels != network.latent_channels:
            raise DataError(
                f"{latent} has {channels} channels, but {card.name} takes {network.latent_channels}: "
                "it was made by another tokenizer."
            )
        self._check_tokenizer(card)
        if self.text_shape != (network.text_length, network.text_dim):
            raise DataError(
                f"{sample_path(self.folder, self.names[0], TEXT)} is {list(self.text_shape)}, but "
                f"{card.name} takes [{network.text_length}, {network.text_dim}]: it was made by another "
                "text encoder."
            )
        most = network.max_latent_frames, network.max_latent_height, network.max_latent_width
        too_large = any(size > limit for size, limit in zip((frames, height, width), most, strict=True))
        if too_large or height % network.patch_size or width % network.patch_size:
            raise DataError(
                f"{latent} has {frames} x {height} x {width} frames, rows and columns, but {card.name} takes "
                f"at most {most[0]} x {most[1]} x {most[2]}, rows and columns multiples of "
                f"{network.patch_size}: prepare the videos again in another size."
            )
        if network.takes_given_mask:
            self._check_length(card, latent)

    def _check_tokenizer(self, card: ModelCard) -> None:
        """DataError if the samples say that they are of a model with a tokenizer of another kind.

        Those of Cosmos-1.0 and of Wan2.1 make latents of the same channels, but not of the same meaning.
        """
        path = self.folder / SETTINGS_FILE
        if not path.is_file() and isinstance(card.tokenizer, WanTokenizerShape):
            raise DataError(
                f"{self.folder} has no {SETTINGS_FILE}, as folders of NeMo's script, which are for models of "
                f"Cosmos-1.0: prepare the videos with --model {card.name}."
            )
        name = _read_json(path).get("model") if path.is_file() else None
        made_for = CARDS.get(str(name))
        if made_for is not None and type(made_for.tokenizer) is not type(card.tokenizer):
            raise DataError(
                f"{self.folder} was prepared for {name}, whose tokenizer is not that of {card.name}: "
                f"prepare the videos with --model {card.name}."
            )

    def _check_length(self, card: ModelCard, latent: Path) -> None:
        """DataError unless the samples are as long as a network needs them that is told some frames."""
        found, num_frames = self.latent_shape[1], self._num_frames()
        if card.task is not Task.WORLD_INTERPOLATOR:
            if found < 2:
                raise DataError(
                    f"{latent} has one frame, but {card.name} learns what follows its first: prepare videos "
                    f"of {card.video.min_frames} frames or more."
                )
            return
        wanted = card.latent_frames(card.video.num_frames)
        if found != wanted or num_frames not in (None, card.video.num_frames):
            raise DataError(
                f"{latent} has {found} latent frames of {num_frames or 'some'} video frames, but {card.name} "
                f"learns from {wanted} of {card.video.num_frames}: prepare videos with --model {card.name}."
            )

    def _num_frames(self) -> int | None:
        """Video frames of the first sample, if it says so; its info.json was read before."""
        return _read_json(sample_path(self.folder, self.names[0], INFO)).get("num_frames")

    def _sample(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self._cache:
            return self._cache[index]
        name = self.names[index]
        latent_CTHW = _without_batch_axis(self._load(name, LATENT), num_axes=4)
        text_LD = _without_batch_axis(self._load(name, TEXT), num_axes=2)
        text_LD = _zero_past_end(text_LD, self._load(name, MASK).flatten())
        size = latent_CTHW.nbytes + text_LD.nbytes
        if self._cached_bytes + size <= self.cache_bytes:
            self._cached_bytes += size
            self._cache[index] = latent_CTHW.clone(), text_LD  # a clone: the file is only mapped
        return self._cache.get(index, (latent_CTHW, text_LD))

    def _load(self, name: str, part: str) -> Tensor:
        return _load(sample_path(self.folder, name, part))

    def _compare(self, name: str) -> None:
        """DataError unless the sample is of the first one's kind."""
        latent_shape, text_shape, fps = self._facts(name)
        for part, found, expected in (
            (LATENT, latent_shape, self._latent_shape),
            (TEXT, text_shape, self._text_shape),
        ):
            if found != expected:
                raise DataError(
                    f"{sample_path(self.folder, name, part)} is {list(found)}, but {self.names[0]}.{part} is "
                    f"{list(expected)}: all samples of a folder must have one shape."
                )
        if not math.isclose(fps, self.fps, rel_tol=SAME_FPS):
            raise DataError(
                f"{sample_path(self.folder, name, INFO)} says {fps:g} fps, but {self.names[0]}.{INFO} says "
                f"{self.fps:g}: all samples of a folder must have one frame rate."
            )

    def _facts(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...], float]:
        """Shapes of latent and embedding, and the frame rate; DataError if a file is missing or damaged."""
        for part in PARTS:
            if not sample_path(self.folder, name, part).is_file():
                raise DataError(
                    f"{sample_path(self.folder, name, part)} is missing. If the preparation was interrupted, "
                    f"run it again; else remove the other {name}.* files."
                )
        latent_shape = self._shape(name, LATENT, num_axes=4)
        text_shape = self._shape(name, TEXT, num_axes=2)
        mask_shape = self._shape(name, MASK, num_axes=1)
        if mask_shape != text_shape[:1]:
            raise DataError(
                f"{sample_path(self.folder, name, MASK)} has {mask_shape[0]} numbers, but the embedding "
                f"{text_shape[0]} rows: remove this file and run prepare-data again."
            )
        return latent_shape, text_shape, _fps(sample_path(self.folder, name, INFO))

    def _shape(self, name: str, part: str, *, num_axes: int) -> tuple[int, ...]:
        path = sample_path(self.folder, name, part)
        shape = tuple(_without_batch_axis(_load(path), num_axes=num_axes).shape)
        if len(shape) != num_axes or 0 in shape:
            raise DataError(
                f"{path} holds a tensor of shape {list(shape)}, but one of {num_axes} axes belongs."
            )
        return shape


def _sample_names(folder: Path) -> list[str]:
    """Names that any sample's file begins with, numbers in their order; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: pass what `cosmos-nemo prepare-data` wrote.")
    names = {
        path.name.removesuffix(f".{part}")
        for path in folder.iterdir()
        for part in PARTS
        if path.name.endswith(f".{part}") and not path.name.startswith(".")
    }
    if not names:
        raise DataError(
            f"{folder} holds no samples (0.{LATENT} and so on): pass what `cosmos-nemo prepare-data` wrote."
        )
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sorting key by which 2 comes before 10, and 1-2 before 1-10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _load(path: Path) -> Tensor:
    """The one tensor of a torch file, mapped rather than read where its format allows."""
    try:
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} is truncated or damaged ({reason}): copy it again, or remove it and run prepare-data "
            "again."
        ) from error
    if not isinstance(content, Tensor):
        raise DataError(f"{path} holds a {type(content).__name__}, but a tensor belongs.")
    return content.detach()


def _without_batch_axis(tensor: Tensor, *, num_axes: int) -> Tensor:
    return tensor[0] if tensor.ndim == num_axes + 1 and tensor.shape[0] == 1 else tensor


def _zero_past_end(text_LD: Tensor, mask_L: Tensor) -> Tensor:
    """A copy whose rows past the last one the mask keeps are zero: the network attends to them."""
    kept = mask_L.nonzero()
    end = int(kept.max()) + 1 if len(kept) else 0
    text_LD = text_LD.clone()
    text_LD[end:] = 0
    return text_LD


def _read_json(path: Path) -> dict[str, Any]:
    """Empty if it holds something else; what is needed of it is checked where it is read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): prepare the videos again.") from error
    return content if isinstance(content, dict) else {}


def _fps(path: Path) -> float:
    try:
        info: Any = json.loads(path.read_text(encoding="utf-8"))
        fps = float(info["fps"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} tells no fps ({error!r}): remove this file and run prepare-data again."
        ) from error
    if not (math.isfinite(fps) and fps > 0):
        raise DataError(f"{path} says {fps} fps: a frame rate is above 0.")
    return fps
