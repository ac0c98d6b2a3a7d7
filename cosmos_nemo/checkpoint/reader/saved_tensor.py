"""One tensor written by torch.save somewhere inside a larger file: where do its raw values lie?"""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cosmos_nemo.checkpoint.reader.base import CheckpointError
from cosmos_nemo.checkpoint.reader.raw import RawBlock

_LOCAL_HEADER = struct.Struct("<4s22xHH")


class _Span(io.RawIOBase):
    """Bytes `offset` to `offset + length` of a file, as a file of their own."""

    def __init__(self, file: BinaryIO, *, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = origin + position
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._position)
        count = max(0, min(len(buffer), self._length - self._position))
        read = self._file.readinto(memoryview(buffer)[:count])  # type: ignore[attr-defined]
        self._position += read
        return int(read)


class _TensorUnpickler(pickle.Unpickler):
    """Reads the few globals torch.save writes for a tensor as tuples: nothing foreign is ever called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, tuple(size), tuple(stride))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise CheckpointError(f"it holds an object of {module}.{name}, not a plain tensor")

    def persistent_load(self, identity: Any) -> Any:
        _, storage_class, key, *_ = identity
        return storage_class, key


def locate(path: Path, *, offset: int, length: int, shape: tuple[int, ...], dtype: torch.dtype) -> RawBlock:
    """The raw values of the tensor that torch.save wrote to bytes `offset` to `offset + length` of `path`."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(_Span(file, offset=offset, length=length)) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            (_, key), first, size, strides = _TensorUnpickler(io.BytesIO(archive.read(pickled))).load()
            record = archive.getinfo(pickled.removesuffix("data.pkl") + f"data/{key}")
            values_at = offset + record.header_offset + _header_length(file, offset + record.header_offset)
    except CheckpointError as error:
        raise CheckpointError(f"{path} at byte {offset:,}: {error}") from None
    except Exception as error:  # damaged bytes may raise anything
        raise CheckpointError(f"{path} is damaged at byte {offset:,} ({error!r}): copy it again") from error
    start = values_at + first * dtype.itemsize
    block = RawBlock(path=path, offset=start, shape=size, strides=strides, dtype=dtype)
    if size != shape or record.compress_type or start + block.num_bytes > values_at + record.file_size:
        raise CheckpointError(
            f"{path} is damaged at byte {offset:,}: a tensor {size} where {shape} was expected"
        )
    return block


def _header_length(file: BinaryIO, position: int) -> int:
    file.seek(position)
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if magic != b"PK\x03\x04":
        raise CheckpointError("no record where the archive's directory says one")
    return _LOCAL_HEADER.size + int(name_length) + int(extra_length)
