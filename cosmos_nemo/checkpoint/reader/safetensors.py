"""safetensors files: a header of names, types and byte ranges, then the values."""

import json
import struct
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.checkpoint.reader.base import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.reader.raw import RawBlock, check_length

_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000  # the format's own limit


def open_safetensors(path: Path, *, shards: Iterable[Path]) -> Checkpoint:
    """The tensors of all `shards`; `path` is the file, or the folder that holds them."""
    tensors: dict[str, LazyTensor] = {}
    for shard in shards:
        for name, tensor in _open_file(shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{name} is in {shard} and in another file of {path}: remove one of them"
                )
            tensors[name] = tensor
    return Checkpoint(path, layout="safetensors", tensors=tensors)


def shards_of_index(index: Path) -> list[Path]:
    """The files that a `*.safetensors.index.json` names; CheckpointError if one is missing."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): copy or download it again") from error
    for shard in shards:
        check_length(shard, needed=_LENGTH.size)
    return shards


def _open_file(path: Path) -> dict[str, LazyTensor]:
    header, data_start = _read_header(path)
    try:
        blocks = {name: _block(path, entry, data_start=data_start) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a damaged header ({error!r}): copy or download it again"
        ) from error
    check_length(path, needed=max((b.offset + b.num_bytes for b in blocks.values()), default=data_start))
    return {name: LazyTensor(block.shape, block.dtype, block.read) for name, block in blocks.items()}


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    check_length(path, needed=_LENGTH.size)
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > _LONGEST_HEADER:
            raise CheckpointError(f"{path} is not a safetensors file: its header would have {length:,} bytes")
        check_length(path, needed=_LENGTH.size + length)
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file, or damaged ({error!r})") from error
    return header, _LENGTH.size + length


def _block(path: Path, entry: dict[str, Any], *, data_start: int) -> RawBlock:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
    if end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for the shape {shape} of {entry['dtype']}")
    return RawBlock.contiguous(path, offset=data_start + begin, shape=shape, dtype=dtype)
