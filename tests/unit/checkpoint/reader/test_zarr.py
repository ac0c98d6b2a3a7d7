import json

import pytest
import torch

from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

KEY = "module.decoder.layers.mlp.linear_fc1.weight"


def set_header(zarr, **fields):
    path = zarr / KEY / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_extra_state_folders_are_no_tensors(golden):
    names = open_checkpoint(golden / "nemo_text_zarr").names()
    assert len(names) == 27
    assert not [name for name in names if "_extra_state" in name]


def test_a_missing_chunk_is_named(zarr):
    (zarr / KEY / "1.0.0").unlink()
    with pytest.raises(CheckpointError, match=r"mlp\.linear_fc1\.weight/1\.0\.0 is missing"):
        open_checkpoint(zarr)


def test_a_truncated_chunk_is_named(zarr):
    chunk = zarr / KEY / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"0\.0\.0 is truncated: it has 65,535 of at least 65,536 bytes"
    ):
        open_checkpoint(zarr)


def test_a_missing_header_is_named(zarr):
    (zarr / KEY / ".zarray").unlink()
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight/\.zarray is missing"):
        open_checkpoint(zarr)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"compressor": {"id": "blosc"}}, r"says compressor \{'id': 'blosc'\}"),
        ({"order": "F"}, "says order 'F'"),
        ({"zarr_format": 3}, "says zarr_format 3"),
        ({"dtype": ">f4"}, "says dtype '>f4': known are bfloat16"),
        ({"chunks": [1, 256]}, "is damaged"),
        ({"chunks": [0, 256, 64]}, "is damaged"),
        ({"shape": None}, "is damaged"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(zarr, fields, sentence):
    set_header(zarr, **fields)
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(zarr)


def test_a_header_that_is_no_json_is_damaged(zarr):
    (zarr / KEY / ".zarray").write_text('{"chunks": [')
    with pytest.raises(CheckpointError, match=r"\.zarray is damaged"):
        open_checkpoint(zarr)


def test_bfloat16_chunks_are_raw_16_bit_values(zarr):
    whole = open_checkpoint(zarr).read(KEY).to(torch.bfloat16)
    for layer in range(2):
        (zarr / KEY / f"{layer}.0.0").write_bytes(whole[layer].view(torch.int16).numpy().tobytes())
    set_header(zarr, dtype="bfloat16")
    checkpoint = open_checkpoint(zarr)
    assert checkpoint.dtype(KEY) == torch.bfloat16
    assert torch.equal(checkpoint.read(KEY), whole)


def test_a_chunk_at_the_edge_is_stored_whole_and_cut(zarr):
    whole = open_checkpoint(zarr).read(KEY)
    for layer in range(2):
        for piece, rows in enumerate((slice(0, 192), slice(192, 256))):
            padded = torch.full((1, 192, 64), 7.0)
            padded[0, : rows.stop - rows.start] = whole[layer, rows]
            (zarr / KEY / f"{layer}.{piece}.0").write_bytes(padded.numpy().tobytes())
    set_header(zarr, chunks=[1, 192, 64])
    assert torch.equal(open_checkpoint(zarr).read(KEY), whole)
