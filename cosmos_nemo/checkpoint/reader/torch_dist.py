"""NeMo's and Megatron's present layout: `.metadata` names the pieces, `__<rank>_<i>.distcp` hold them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader.base import Checkpoint, CheckpointError, Index, LazyTensor
from cosmos_nemo.checkpoint.reader.chunks import Chunk, from_chunks
from cosmos_nemo.checkpoint.reader.metadata_pickle import read_metadata
from cosmos_nemo.checkpoint.reader.raw import check_length
from cosmos_nemo.checkpoint.reader.saved_tensor import locate


def open_torch_dist(folder: Path) -> Checkpoint:
    """The tensors of the folder that holds `.metadata`; objects (`_extra_state`) are skipped."""
    metadata = read_metadata(folder / ".metadata")
    try:
        stored = {
            (index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items()
        }
        tensors = {
            name: _open_tensor(folder, name, entry=entry, stored=stored)
            for name, entry in metadata.state_dict_metadata.items()
            if hasattr(entry, "chunks")
        }
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / '.metadata'} is damaged ({error!r}): copy it again") from error
    return Checkpoint(folder, layout="torch_dist", tensors=tensors)


def _open_tensor(
    folder: Path, name: str, *, entry: Any, stored: Mapping[tuple[str, tuple[int, ...]], Any]
) -> LazyTensor:
    dtype = entry.properties.dtype
    chunks = []
    for piece in entry.chunks:
        start, shape = tuple(piece.offsets), tuple(piece.sizes)
        info = stored.get((name, start))
        if info is None:
            raise CheckpointError(f"{folder / '.metadata'} does not say where {name} at {start} lies")
        path = _check_info(folder, info)
        load = partial(_load, path, offset=info.offset, length=info.length, shape=shape, dtype=dtype)
        chunks.append(Chunk(start, shape, load))
    return from_chunks(chunks, shape=tuple(entry.size), dtype=dtype, name=name)


def _check_info(folder: Path, info: Any) -> Path:
    path = folder / info.relative_path
    if path.parent != folder:
        raise CheckpointError(f"{folder / '.metadata'} points outside its folder, to {info.relative_path}")
    if getattr(info, "transform_descriptors", None):
        raise CheckpointError(
            f"{path} is stored through {', '.join(info.transform_descriptors)}: save it without compression"
        )
    check_length(path, needed=info.offset + info.length)
    return path


def _load(
    path: Path, index: Index, *, offset: int, length: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    return locate(path, offset=offset, length=length, shape=shape, dtype=dtype).read(index)
