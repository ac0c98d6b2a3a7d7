import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_nemo.checkpoint.reader import CheckpointError, detect, open_checkpoint


def test_a_path_that_does_not_exist_says_what_is_there(tmp_path):
    (tmp_path / "nemo").mkdir()
    with pytest.raises(CheckpointError, match=r"nemmo does not exist; .* holds nemo/"):
        open_checkpoint(tmp_path / "nemmo")
    with pytest.raises(CheckpointError, match=r"a/b does not exist$"):
        open_checkpoint(tmp_path / "a" / "b")


def test_an_empty_folder_holds_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint\. It holds nothing"):
        open_checkpoint(tmp_path)


def test_a_folder_of_other_files_is_listed(tmp_path):
    for name in "abcdefg":
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"It holds a, b, c, d, e and 2 more"):
        open_checkpoint(tmp_path)


def test_several_checkpoints_in_a_folder_are_listed(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"several checkpoints: model\.pt, one\.safetensors, two\.safe"):
        open_checkpoint(tmp_path)


def test_the_folder_above_weights_may_be_passed_with_its_context(torch_dist):
    (torch_dist.parent / "context").mkdir()
    assert open_checkpoint(torch_dist.parent).path == torch_dist


def test_weights_may_hold_the_zarr_layout_too(zarr, tmp_path):
    shutil.move(zarr, tmp_path / "epoch=0-step=9" / "weights")
    assert open_checkpoint(tmp_path / "epoch=0-step=9").layout == "zarr"


@pytest.mark.parametrize("layout", ["zarr", "torch_dist", "torch_dist weights"])
def test_a_repository_with_its_nemo_folder_is_that_checkpoint(layouts, tmp_path, layout):
    """A torch_dist may lie in nemo/ itself or in nemo/weights/."""
    shutil.copytree(layouts[layout], tmp_path / "repository" / "nemo")
    (tmp_path / "repository" / "README.md").touch()
    found = open_checkpoint(tmp_path / "repository")
    assert found.names() == open_checkpoint(layouts[layout]).names()
    assert found.path.is_relative_to(tmp_path / "repository" / "nemo")


def test_a_model_pt_beside_the_nemo_folder_is_meant(layouts, tmp_path):
    shutil.copytree(layouts["zarr"], tmp_path / "nemo")
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    assert open_checkpoint(tmp_path).names() == ("a",)


def test_an_unfinished_nemo_folder_is_refused_from_above_too(layouts, tmp_path):
    shutil.copytree(layouts["zarr"], tmp_path / "nemo")
    (tmp_path / "nemo-unfinished").touch()
    with pytest.raises(CheckpointError, match=r"nemo was not saved to the end"):
        open_checkpoint(tmp_path)


def test_an_empty_weights_folder_is_named(tmp_path):
    (tmp_path / "weights").mkdir()
    with pytest.raises(CheckpointError, match=r"weights holds no checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("inside", ["", "weights"])
def test_an_unfinished_checkpoint_is_refused(torch_dist, inside):
    (torch_dist.parents[1] / "step=1-unfinished").touch()
    with pytest.raises(
        CheckpointError, match=r"was not saved to the end \(step=1-unfinished lies beside it\)"
    ):
        open_checkpoint(torch_dist.parent / inside)


def test_a_path_that_may_not_be_read_is_a_sentence(torch_dist, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path / ".metadata"))

    monkeypatch.setattr(detect, "_open_torch_dist", refuse)
    with pytest.raises(CheckpointError, match=r"weights/\.metadata may not be read"):
        open_checkpoint(torch_dist)


def test_opening_reads_no_tensor(golden, monkeypatch):
    monkeypatch.setattr(np, "memmap", None)
    for name in ("nemo_text_zarr", "nemo_text_torch_dist", "predict1_dit_tiny.safetensors"):
        checkpoint = open_checkpoint(golden / name)
        with pytest.raises(TypeError):
            checkpoint.read(checkpoint.names()[0])


def test_the_folder_one_stands_in_is_a_path_like_others(torch_dist, monkeypatch):
    monkeypatch.chdir(torch_dist)
    whole, here = open_checkpoint(torch_dist), open_checkpoint(Path())
    assert here.names() == whole.names()
    (torch_dist.parents[1] / "step=1-unfinished").touch()
    with pytest.raises(CheckpointError, match="was not saved to the end"):
        open_checkpoint(Path())
