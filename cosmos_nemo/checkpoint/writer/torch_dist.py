"""NeMo's present layout: `weights/` with `.metadata` and one file of tensors, which Megatron-core reads."""

import math
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer.nemo_context import NeMoContext, write_context
from cosmos_nemo.checkpoint.writer.new_path import new_path
from cosmos_nemo.checkpoint.writer.pieces import Piece, pieces_of, write_common_files

_DATA_FILE = "__0_0.distcp"
_ALIGNMENT = 64  # torch.save aligns values to this within its own bytes, so they can be memory-mapped


def write_torch_dist(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: DiTShape,
    card_overrides: Mapping[str, Any] | None = None,
    context: NeMoContext | None = None,
) -> None:
    """Writes the network as `folder/weights/`, and `folder/card.json` if there are overrides.

    `tensors` has every name of names.parameter_shapes(shape); they are made one at a time. With `context`
    NeMo's loaders know the network too. No process group is needed. CheckpointError if `folder` exists.
    """
    write_pieces(folder, pieces_of(tensors, shape=shape), card_overrides=card_overrides, context=context)


def write_pieces(
    folder: Path,
    pieces: Iterable[Piece],
    *,
    card_overrides: Mapping[str, Any] | None = None,
    context: NeMoContext | None = None,
) -> None:
    """As write_torch_dist, of the pieces of any network; they are read one at a time."""
    with new_path(folder) as partial:
        weights = partial / "weights"
        weights.mkdir(parents=True)
        with (weights / _DATA_FILE).open("wb") as file:
            places = [(piece, *_append(file, piece)) for piece in pieces]
        (weights / ".metadata").write_bytes(_metadata(places))
        write_common_files(weights, backend="torch_dist")
        write_card_file(partial, dict(card_overrides or {}))
        if context is not None:
            largest = max((piece for piece, _, _ in places), key=lambda piece: math.prod(piece.shape))
            write_context(partial, context, dtype=largest.tensor.dtype)


def _append(file: BinaryIO, piece: Piece) -> tuple[int, int]:
    """Writes the piece; where it begins and how long it is."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    offset = file.tell()
    torch.save(piece.read(), file)
    return offset, file.tell() - offset


def _metadata(places: list[tuple[Piece, int, int]]) -> bytes:
    from torch.distributed.checkpoint import filesystem, metadata

    tensors: dict[str, Any] = {}
    stored = {}
    for piece, offset, length in places:
        entry = metadata.TensorStorageMetadata(
            metadata.TensorProperties(dtype=piece.tensor.dtype), torch.Size(piece.stored_shape), chunks=[]
        )
        entry = tensors.setdefault(piece.key, entry)
        assert entry.properties.dtype == piece.tensor.dtype, f"the layers of {piece.key} differ in dtype"
        entry.chunks.append(metadata.ChunkStorageMetadata(torch.Size(piece.start), torch.Size(piece.shape)))
        index = metadata.MetadataIndex(piece.key, piece.start, index=len(entry.chunks) - 1)
        stored[index] = filesystem._StorageInfo(_DATA_FILE, offset, length)
    found = metadata.Metadata(
        tensors, planner_data={}, storage_data=stored, storage_meta=metadata.StorageMeta()
    )
    return pickle.dumps(found)
