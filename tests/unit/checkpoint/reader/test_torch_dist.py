import pickle

import pytest
import torch
import torch.distributed.checkpoint
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp

from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.reader.metadata_pickle import read_metadata

KEY = "module.decoder.layers.mlp.linear_fc1.weight"


def change(weights, edit):
    """Applies `edit` to the metadata."""
    metadata = read_metadata(weights / ".metadata")
    edit(metadata)
    metadata.__class__ = metadata.__class__.__mro__[1]  # torch's own, which can be pickled
    metadata.all_local_plans = None
    (weights / ".metadata").write_bytes(pickle.dumps(metadata))


def places_of(metadata, name):
    return [info for index, info in metadata.storage_data.items() if index.fqn == name]


def test_objects_are_no_tensors(golden):
    names = open_checkpoint(golden / "nemo_text_torch_dist").names()
    assert len(names) == 27
    assert not [name for name in names if "_extra_state" in name]


def test_a_missing_shard_is_named(torch_dist):
    (torch_dist / "__0_1.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__0_1\.distcp is missing"):
        open_checkpoint(torch_dist)


def test_a_truncated_shard_is_named(torch_dist):
    shard = torch_dist / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is truncated"):
        open_checkpoint(torch_dist.parent)


def test_missing_metadata_is_a_sentence(torch_dist):
    (torch_dist / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"\.metadata is missing beside the \.distcp files"):
        open_checkpoint(torch_dist)


def test_truncated_metadata_is_damaged(torch_dist):
    file = torch_dist / ".metadata"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"\.metadata is truncated or damaged"):
        open_checkpoint(torch_dist)


def test_a_piece_without_a_place_is_named(torch_dist):
    def forget(metadata):
        metadata.storage_data = {i: info for i, info in metadata.storage_data.items() if i.fqn != KEY}

    change(torch_dist, forget)
    with pytest.raises(CheckpointError, match=rf"does not say where {KEY} at \(0, 0, 0\) lies"):
        open_checkpoint(torch_dist)


def test_a_tensor_with_a_hole_is_incomplete(torch_dist):
    change(torch_dist, lambda metadata: metadata.state_dict_metadata[KEY].chunks.pop())
    with pytest.raises(CheckpointError, match=rf"the pieces of {KEY} do not fill its shape"):
        open_checkpoint(torch_dist)


def test_compressed_pieces_are_refused(torch_dist):
    def compress(metadata):
        for info in places_of(metadata, KEY):
            object.__setattr__(info, "transform_descriptors", ["zstd"])

    change(torch_dist, compress)
    with pytest.raises(CheckpointError, match="is stored through zstd: save it without compression"):
        open_checkpoint(torch_dist)


def test_a_place_outside_the_folder_is_refused(torch_dist):
    def escape(metadata):
        for info in places_of(metadata, KEY):
            info.relative_path = "../../secret"

    change(torch_dist, escape)
    with pytest.raises(CheckpointError, match=r"points outside its folder, to \.\./\.\./secret"):
        open_checkpoint(torch_dist)


def test_metadata_without_its_fields_is_damaged(torch_dist):
    def strip(metadata):
        metadata.storage_data = None

    change(torch_dist, strip)
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
        open_checkpoint(torch_dist)


def test_damaged_data_is_found_when_it_is_read(torch_dist):
    shard = torch_dist / "__0_0.distcp"
    shard.write_bytes(bytes(shard.stat().st_size))
    checkpoint = open_checkpoint(torch_dist)
    broken = 0
    for name in checkpoint.names():
        try:
            checkpoint.read(name)
        except CheckpointError as error:
            assert "__0_0.distcp is damaged at byte" in str(error)
            broken += 1
    assert broken


def save_boxes(folder, name, whole, boxes):
    """`whole` as torch.distributed.checkpoint saves it from several ranks, a file each; boxes are slices."""
    entry = dcp.TensorStorageMetadata(dcp.TensorProperties(dtype=whole.dtype), whole.shape, chunks=[])
    stored = {}
    for rank, box in enumerate(boxes):
        part, start = whole[box], [side.indices(size)[0] for side, size in zip(box, whole.shape, strict=True)]
        torch.save(part.clone(), folder / f"__{rank}_0.distcp")
        length = (folder / f"__{rank}_0.distcp").stat().st_size
        stored[dcp.MetadataIndex(name, start)] = filesystem._StorageInfo(f"__{rank}_0.distcp", 0, length)
        entry.chunks.append(dcp.ChunkStorageMetadata(torch.Size(start), part.shape))
    (folder / ".metadata").write_bytes(pickle.dumps(dcp.Metadata({name: entry}, storage_data=stored)))


def test_a_tensor_saved_in_tensor_parallel_parts_is_whole(tmp_path):
    whole = torch.randn(3, 8, 10)
    boxes = [
        (slice(layer, layer + 1), slice(0, 8), slice(5 * rank, 5 * rank + 5))
        for layer in range(3)
        for rank in range(2)
    ]
    save_boxes(tmp_path, "w", whole, boxes)
    theirs = {"w": torch.zeros(3, 8, 10)}
    torch.distributed.checkpoint.load(theirs, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(theirs["w"], whole)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.shape("w") == (3, 8, 10)
    assert torch.equal(checkpoint.read("w"), whole)
    assert torch.equal(checkpoint.read("w", (slice(1, 2), slice(2, 6), slice(3, 8))), whole[1:2, 2:6, 3:8])
