"""Reading torch_dist's `.metadata` without trusting it: a pickle of known, harmless classes only."""

import collections
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.serialization import _get_layout

from cosmos_nemo.checkpoint.reader.base import CheckpointError


class _MCoreMetadata(metadata.Metadata):
    """Stands for Megatron's class of this name, so that reading needs no Megatron."""


class _MCoreSavePlan(planner.SavePlan):
    """Stands for Megatron's class of this name."""


_MCORE = "megatron.core.dist_checkpointing.strategies.torch"
_ADMITTED: dict[tuple[str, str], Any] = {
    (_MCORE, "MCoreMetadata"): _MCoreMetadata,
    (_MCORE, "MCoreSavePlan"): _MCoreSavePlan,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): filesystem._StorageInfo,
    # Older torch kept the properties here.
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"): metadata.TensorProperties,
    (
        "torch.distributed._shard.sharded_tensor.metadata",
        "MEM_FORMAT_ENCODING",
    ): metadata._MEM_FORMAT_ENCODING,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    **{("builtins", kind.__name__): kind for kind in (dict, list, set, frozenset, tuple, int, slice)},
    # Where the checkpoint was written; Python 3.13 moved the class.
    **{(module, "PosixPath"): PurePosixPath for module in ("pathlib", "pathlib._local")},
    **{
        ("torch.distributed.checkpoint.metadata", kind.__name__): kind
        for kind in (
            metadata.BytesStorageMetadata,
            metadata.ChunkStorageMetadata,
            metadata.Metadata,
            metadata.MetadataIndex,
            metadata.StorageMeta,
            metadata.TensorProperties,
            metadata.TensorStorageMetadata,
            metadata._MEM_FORMAT_ENCODING,
        )
    },
    **{
        ("torch.distributed.checkpoint.planner", kind.__name__): kind
        for kind in (
            planner.BytesIOWriteData,
            planner.SavePlan,
            planner.TensorWriteData,
            planner.WriteItem,
            planner.WriteItemType,
        )
    },
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _ADMITTED:
            raise CheckpointError(
                f"its .metadata names {module}.{name}, which no checkpoint of Megatron or torch needs: "
                "do not load it, and ask where the file comes from"
            )
        return _ADMITTED[module, name]


def read_metadata(path: Path) -> metadata.Metadata:
    """The content of a `.metadata` file; CheckpointError if it is damaged or names a class it should not."""
    try:
        with path.open("rb") as file:
            found = _MetadataUnpickler(file).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path.parent} was refused: {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(f"{path} is truncated or damaged ({error!r}): copy it again") from error
    if not isinstance(found, metadata.Metadata):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not the metadata of a checkpoint")
    return found
