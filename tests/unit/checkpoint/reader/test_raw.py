import os

import pytest
import torch

from cosmos_nemo.checkpoint.reader.base import CheckpointError
from cosmos_nemo.checkpoint.reader.raw import RawBlock, check_length

ALL = (slice(0, 4), slice(0, 6))


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def values():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("offset", [0, 3, 64])
def test_values_of_any_type_at_any_place_come_back(tmp_path, values, dtype, offset):
    values = values.to(dtype)
    file = tmp_path / "raw"
    file.write_bytes(bytes(offset) + values.view(torch.uint8).numpy().tobytes())
    block = RawBlock.contiguous(file, offset=offset, shape=(4, 6), dtype=dtype)
    assert torch.equal(block.read(ALL), values)
    assert block.read(ALL).data_ptr() % dtype.itemsize == 0
    assert torch.equal(block.read((slice(1, 3), slice(2, 5))), values[1:3, 2:5])


def test_a_transposed_tensor_is_read_through_its_strides(tmp_path, values):
    file = tmp_path / "raw"
    file.write_bytes(values.numpy().tobytes())
    block = RawBlock(path=file, offset=0, shape=(6, 4), strides=(1, 6), dtype=torch.float32)
    assert torch.equal(block.read((slice(0, 6), slice(1, 4))), values.T[:, 1:4])


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_scalars_and_empty_tensors_are_tensors_too(tmp_path, shape):
    file = tmp_path / "raw"
    file.write_bytes(torch.ones(1).numpy().tobytes())
    block = RawBlock.contiguous(file, offset=0, shape=shape, dtype=torch.float32)
    assert torch.equal(block.read(tuple(slice(0, size) for size in shape)), torch.ones(shape))


def test_a_slice_of_a_large_file_does_not_load_the_file(tmp_path):
    file, rows, width = tmp_path / "raw", 2**12, 2**17
    with file.open("wb") as sparse:
        sparse.truncate(rows * width * 4)  # 2 GiB
    before = resident_bytes()
    block = RawBlock.contiguous(file, offset=0, shape=(rows, width), dtype=torch.float32)
    assert block.read((slice(7, 9), slice(0, width))).sum() == 0
    assert resident_bytes() - before < 2**26


def test_a_missing_and_a_short_file_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone is missing"):
        check_length(tmp_path / "gone", needed=1)
    (tmp_path / "short").write_bytes(b"123")
    with pytest.raises(CheckpointError, match=r"short is truncated: it has 3 of at least 1,000 bytes"):
        check_length(tmp_path / "short", needed=1000)
