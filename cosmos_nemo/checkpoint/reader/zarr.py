"""The released NeMo layout: one folder per tensor, raw chunk files (spec/nemo-cosmos1.md, 3.1)."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.checkpoint.reader.base import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.reader.chunks import Chunk, from_chunks
from cosmos_nemo.checkpoint.reader.raw import RawBlock, check_length

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "<f2": torch.float16,
    "<f4": torch.float32,
    "<f8": torch.float64,
    "<i2": torch.int16,
    "<i4": torch.int32,
    "<i8": torch.int64,
    "|i1": torch.int8,
    "|u1": torch.uint8,
    "|b1": torch.bool,
}


def open_zarr(folder: Path) -> Checkpoint:
    """The tensors of a released `nemo/` folder; `_extra_state` folders hold no tensors and are skipped."""
    tensors = {}
    for child in sorted(folder.iterdir()):
        if (child / ".zarray").is_file():
            tensors[child.name] = _open_array(child)
        elif child.is_dir() and not child.name.endswith("_extra_state") and _has_chunks(child):
            raise CheckpointError(f"{child / '.zarray'} is missing: copy the folder with its hidden files")
    return Checkpoint(folder, layout="zarr", tensors=tensors)


def _has_chunks(folder: Path) -> bool:
    return any(file.name.replace(".", "").isdecimal() for file in folder.iterdir())


def _open_array(folder: Path) -> LazyTensor:
    header = _read_header(folder / ".zarray")
    shape, chunk_shape = tuple(header["shape"]), tuple(header["chunks"])
    dtype = _DTYPES[header["dtype"]]
    separator = header.get("dimension_separator", ".")
    chunks = []
    for cell in _grid(shape, chunk_shape):
        path = folder / (separator.join(map(str, cell)) or "0")
        block = RawBlock.contiguous(path, offset=0, shape=chunk_shape, dtype=dtype)
        check_length(path, needed=block.num_bytes)
        start = tuple(position * size for position, size in zip(cell, chunk_shape, strict=True))
        # A chunk at the edge is stored whole; what lies outside the tensor is never asked for.
        chunks.append(Chunk(start, chunk_shape, block.read))
    return from_chunks(chunks, shape=shape, dtype=dtype, name=folder.name)


def _grid(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    counts = [range(math.ceil(size / step)) for size, step in zip(shape, chunk_shape, strict=True)]
    return itertools.product(*counts)


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(path.read_text())
        required = {"zarr_format": 2, "compressor": None, "filters": None, "order": "C"}
        for key, value in required.items():
            if header[key] != value:
                raise CheckpointError(f"{path} says {key} {header[key]!r}: only {value!r} can be read")
        if header["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path} says dtype {header['dtype']!r}: known are {', '.join(_DTYPES)}")
        if len(header["shape"]) != len(header["chunks"]) or not all(size > 0 for size in header["chunks"]):
            raise CheckpointError(f"{path} is damaged: shape {header['shape']}, chunks {header['chunks']}")
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): copy or download it again") from error
    return header
