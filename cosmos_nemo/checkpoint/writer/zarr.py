"""The released NeMo layout: a flat folder of raw chunk files (spec/nemo-cosmos1.md, 3.1)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.card_file import write_card_file
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer.new_path import new_path
from cosmos_nemo.checkpoint.writer.pieces import Piece, pieces_of, write_common_files

_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "<f2", torch.float32: "<f4", torch.float64: "<f8"}


def write_zarr(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    shape: DiTShape,
    card_overrides: Mapping[str, Any] | None = None,
) -> None:
    """Writes the network as `folder/<key>/<chunk>`, as released; else as write_torch_dist."""
    with new_path(folder) as partial:
        partial.mkdir()
        for piece in pieces_of(tensors, shape=shape):
            _write(partial / piece.key, piece)
        write_common_files(partial, backend="zarr")
        write_card_file(partial, dict(card_overrides or {}))


def _write(folder: Path, piece: Piece) -> None:
    folder.mkdir(exist_ok=True)
    header = {
        "chunks": piece.shape,
        "compressor": None,
        "dtype": _DTYPES[piece.tensor.dtype],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": piece.stored_shape,
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps(header))
    # Only the first axis is cut, in pieces of length 1: a piece's start is its place in the grid.
    chunk_file = folder / ".".join(map(str, piece.start))
    chunk_file.write_bytes(piece.read().reshape(-1).view(torch.uint8).numpy().data)
