"""model.pt and other files of torch.save, and TorchScript modules."""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader.base import Checkpoint, CheckpointError, LazyTensor

# A training checkpoint keeps the network under one of these (spec/predict1-diffusion.md, 2).
_WRAPPERS = ("model", "module", "state_dict")
_LORA = "_lora-"


def open_torch_file(path: Path) -> Checkpoint:
    """The tensors of a torch.save file (memory-mapped) or of a TorchScript module, told by its content."""
    if not _is_zip(path):
        return _checkpoint(path, layout="torch", tensors=_unwrap(_load(path, mmap=False), path=path))
    if any("/code/" in name for name in _record_names(path)):
        return _checkpoint(path, layout="torchscript", tensors=_load_script(path))
    return _checkpoint(path, layout="torch", tensors=_unwrap(_load(path, mmap=True), path=path))


def _checkpoint(path: Path, *, layout: str, tensors: Mapping[str, Tensor]) -> Checkpoint:
    lazy = {name: LazyTensor.of(tensor.detach()) for name, tensor in tensors.items()}
    return Checkpoint(path, layout=layout, tensors=lazy)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    if start not in (b"PK", b"\x80\x02"):
        raise CheckpointError(f"{path} is no file of torch.save: it starts with the bytes {start!r}")
    return start == b"PK"


def _record_names(path: Path) -> list[str]:
    """Names of the archive's records; its directory stands at the end, so a truncated file has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}): copy or download it again"
        ) from error


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        # Transformer Engine's _extra_state is a BytesIO; an empty one is pickled with `bytes` by name.
        with torch.serialization.safe_globals([io.BytesIO, bytes]):
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise CheckpointError(f"{path} is damaged ({error}): copy or download it again") from error
        raise CheckpointError(
            f"{path} holds an object of {foreign[1]}: only tensors and plain containers are read"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}): copy or download it again"
        ) from error


def _unwrap(content: Any, *, path: Path) -> dict[str, Tensor]:
    inner = content
    if isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = _tensors_of(inner)
    if isinstance(content, Mapping):
        # LoRA post-training keeps the averages of what it trained beside the model's, which they replace.
        averaged = _tensors_of(content.get("ema"))
        tensors |= {name.replace("-", "."): value for name, value in averaged.items() if _LORA in name}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no named tensors, but a {type(content).__name__}: is it a checkpoint?"
        )
    return tensors


def _tensors_of(mapping: Any) -> dict[str, Tensor]:
    if not isinstance(mapping, Mapping):
        return {}
    return {str(name): value for name, value in mapping.items() if isinstance(value, Tensor)}


def _load_script(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        # torch calls its own format deprecated; the released tokenizers are in it all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module = torch.jit.load(path, map_location="cpu")
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} is truncated or damaged ({error}): copy or download it again"
            ) from error
    return dict(module.state_dict())
