import os
import pickle
import re
import subprocess
from pathlib import PosixPath

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.reader.metadata_pickle import read_metadata


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def metadata_with(tmp_path):
    """Writes metadata whose planner_data is `value`."""

    def write(value):
        path = tmp_path / ".metadata"
        path.write_bytes(pickle.dumps(Metadata({}, planner_data=value, storage_data={})))
        return path

    return write


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("posix.system", lambda mark: Call(os.system, f"touch {mark}")),
        ("subprocess.check_output", lambda mark: Call(subprocess.check_output, ["touch", mark])),
        ("builtins.eval", lambda mark: Call(eval, f"open({mark!r}, 'w')")),
        ("builtins.getattr", lambda mark: Call(getattr, "", "join")),
        ("torch.serialization.load", lambda mark: Call(torch.load, mark)),
    ],
)
def test_a_pickle_that_calls_is_refused_without_calling(tmp_path, metadata_with, name, call):
    mark = tmp_path / "called"
    path = metadata_with(call(str(mark)))
    with pytest.raises(
        CheckpointError, match=rf"names {name}, which no checkpoint of Megatron or torch needs"
    ):
        open_checkpoint(path.parent)
    assert not mark.exists()


@pytest.mark.parametrize("module", ["torch.distributed.checkpoint.metadata", "builtins", "torch"])
def test_other_names_of_admitted_modules_are_refused(tmp_path, module):
    name = {"builtins": "exec", "torch": "load"}.get(module, "os")
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(CheckpointError, match=re.escape(f"{module}.{name}")):
        read_metadata(tmp_path / ".metadata")


def test_metadata_may_say_where_it_was_written(metadata_with):
    assert read_metadata(metadata_with(StorageMeta(checkpoint_id=PosixPath("/a/b")))).planner_data


def test_a_pickle_of_something_else_is_no_metadata(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError, match="holds a list, not the metadata"):
        read_metadata(tmp_path / ".metadata")


def test_megatrons_classes_become_our_own(golden):
    found = read_metadata(golden / "nemo_text_torch_dist" / "weights" / ".metadata")
    assert type(found).__module__ == "cosmos_nemo.checkpoint.reader.metadata_pickle"
    assert found.mcore_data
