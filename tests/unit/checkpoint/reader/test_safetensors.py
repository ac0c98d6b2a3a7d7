import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint

TENSORS = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2, 2).to(torch.bfloat16)}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def rewrite_header(file, edit):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_a_file_of_the_library_is_read(file, assert_equal):
    checkpoint = open_checkpoint(file)
    assert_equal({name: checkpoint.read(name) for name in checkpoint.names()}, TENSORS)


def test_a_folder_with_one_file_is_that_file(file):
    assert open_checkpoint(file.parent).names() == ("a", "b", "c")


def test_a_truncated_file_is_named(file):
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        open_checkpoint(file)


@pytest.mark.parametrize("length", [0, 4, 20])
def test_a_file_cut_in_its_header_is_truncated(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is truncated"):
        open_checkpoint(file)


def test_a_file_of_another_kind_is_refused(file):
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        open_checkpoint(file)
    file.write_bytes(struct.pack("<Q", 4) + b"1234" + bytes(10))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["a"].update(shape=[3, 5]),
        lambda header: header["a"].update(dtype="Q4"),
        lambda header: header["a"].pop("data_offsets"),
        lambda header: header.update(a=7),
    ],
)
def test_a_damaged_header_is_named(file, edit):
    rewrite_header(file, edit)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has a damaged header"):
        open_checkpoint(file)


def test_a_missing_shard_of_the_index_is_named(tmp_path, layouts):
    folder = layouts["safetensors shards"]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        open_checkpoint(tmp_path)


def test_numbered_shards_need_no_index_but_must_be_all_there(tmp_path):
    for number, name in ((1, "a"), (2, "b"), (3, "c")):
        save_file({name: TENSORS[name]}, tmp_path / f"m-{number:05d}-of-00003.safetensors")
    assert open_checkpoint(tmp_path).names() == ("a", "b", "c")
    (tmp_path / "m-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.safetensors is missing"):
        open_checkpoint(tmp_path)


def test_the_index_itself_can_be_passed(layouts):
    folder = layouts["safetensors shards"]
    by_index = open_checkpoint(folder / "model.safetensors.index.json")
    assert by_index.names() == open_checkpoint(folder).names()


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is damaged"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for number in (1, 2):
        save_file({"a": TENSORS["a"]}, tmp_path / f"m-{number:05d}-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"a is in .*00002-of-00002.* and in another file"):
        open_checkpoint(tmp_path)
