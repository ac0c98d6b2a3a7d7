import io

import pytest
import torch

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.checkpoint.reader.saved_tensor import locate

VALUES = torch.arange(24.0).reshape(4, 6)


def place(path, content, *, before=37):
    """`content` as torch.save writes it, in the middle of a file; its offset and length."""
    stream = io.BytesIO()
    torch.save(content, stream)
    path.write_bytes(b"x" * before + stream.getvalue() + b"y" * 11)
    return {"offset": before, "length": len(stream.getvalue())}


@pytest.mark.parametrize(
    "tensor",
    [
        VALUES,
        VALUES.to(torch.bfloat16),
        VALUES.T,
        VALUES[1:3, 2:],
        torch.nn.Parameter(VALUES),
        torch.tensor(3.0),
        torch.arange(5),
    ],
    ids=["plain", "bfloat16", "transposed", "part of a storage", "parameter", "scalar", "integers"],
)
def test_the_values_lie_where_located(tmp_path, tensor):
    span = place(tmp_path / "file", tensor)
    shape = tuple(tensor.shape)
    block = locate(tmp_path / "file", **span, shape=shape, dtype=tensor.dtype)
    assert torch.equal(block.read(tuple(slice(0, size) for size in shape)), tensor.detach())


def test_another_shape_than_the_metadata_says_is_damage(tmp_path):
    span = place(tmp_path / "file", VALUES)
    with pytest.raises(CheckpointError, match=r"a tensor \(4, 6\) where \(6, 4\) was expected"):
        locate(tmp_path / "file", **span, shape=(6, 4), dtype=torch.float32)


def test_a_wider_type_than_was_saved_is_damage(tmp_path):
    span = place(tmp_path / "file", VALUES)
    with pytest.raises(CheckpointError, match="is damaged at byte 37"):
        locate(tmp_path / "file", **span, shape=(4, 6), dtype=torch.float64)


@pytest.mark.parametrize("content", [[VALUES], {"a": VALUES}, torch.device("cpu")])
def test_anything_but_a_tensor_is_refused(tmp_path, content):
    span = place(tmp_path / "file", content)
    with pytest.raises(CheckpointError):
        locate(tmp_path / "file", **span, shape=(4, 6), dtype=torch.float32)
