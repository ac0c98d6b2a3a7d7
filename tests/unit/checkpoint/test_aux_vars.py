from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_nemo.checkpoint.aux_vars import copy_aux_vars, read_generic_text, write_aux_vars
from cosmos_nemo.checkpoint.reader import CheckpointError

TEXT = torch.arange(12.0).view(1, 3, 4).bfloat16()


def complaint(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_generic_text(checkpoint, text_dim=4)
    return str(caught.value)


@pytest.mark.parametrize("inside", [".", "model.pt", "weights", "nemo"])
def test_the_embedding_is_found_from_every_form_of_a_checkpoints_path(tmp_path: Path, inside: str) -> None:
    write_aux_vars(tmp_path, TEXT)
    (tmp_path / "model.pt").write_bytes(b"")
    for folder in ("weights", "nemo"):
        (tmp_path / folder).mkdir()
    assert torch.equal(read_generic_text(tmp_path / inside, text_dim=4), TEXT)


def test_an_embedding_without_batch_is_a_batch_of_one(tmp_path: Path) -> None:
    torch.save({"context": TEXT[0]}, tmp_path / "aux_vars.pt")
    assert torch.equal(read_generic_text(tmp_path, text_dim=4), TEXT)


def test_the_file_has_the_released_names(tmp_path: Path) -> None:
    write_aux_vars(tmp_path, TEXT)
    content = torch.load(tmp_path / "aux_vars.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in content.items()} == {
        "context": (1, 3, 4),
        "context_mask": (1, 3),
    }


def test_a_missing_file_is_said_with_both_ways_out(tmp_path: Path) -> None:
    said = complaint(tmp_path / "model.pt")
    assert "has no aux_vars.pt beside it" in said
    assert "Download it" in said and "--disable_diffusion_decoder" in said


def test_a_file_above_any_other_folder_is_not_the_checkpoints(tmp_path: Path) -> None:
    write_aux_vars(tmp_path, TEXT)
    (tmp_path / "another").mkdir()
    assert "has no aux_vars.pt" in complaint(tmp_path / "another")


def test_a_truncated_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    write_aux_vars(tmp_path, TEXT)
    path = tmp_path / "aux_vars.pt"
    path.write_bytes(path.read_bytes()[:-200])
    assert "is truncated or damaged" in complaint(tmp_path)
    path.write_bytes(b"")
    assert "is truncated or damaged" in complaint(tmp_path)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched_by_a_pickle"),)


def test_no_object_of_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"context": Payload()}, tmp_path / "aux_vars.pt")
    assert "damaged" in complaint(tmp_path)
    assert not (tmp_path / "touched_by_a_pickle").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"context_mask": torch.ones(1, 3)}, "no text embedding under the name 'context'"),
        ({"context": [1.0]}, "no text embedding"),
        ({"context": torch.ones(1, 3, 4, dtype=torch.int64)}, "no text embedding"),
        (torch.ones(1, 3, 4), "no text embedding"),
        ({"context": torch.ones(1, 3, 5)}, r"shape (1, 3, 5), but the decoder takes [1, length, 4]"),
        ({"context": torch.ones(2, 3, 4)}, r"shape (2, 3, 4)"),
        ({"context": torch.ones(1, 0, 4)}, r"shape (1, 0, 4)"),
        ({"context": torch.full((1, 3, 4), torch.nan)}, "NaN or infinite"),
    ],
)
def test_another_content_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "aux_vars.pt")
    assert said in complaint(tmp_path)


def test_a_copy_is_made_of_a_file_that_is_there(tmp_path: Path) -> None:
    for name in ("from", "without", "to"):
        (tmp_path / name).mkdir()
    write_aux_vars(tmp_path / "from", TEXT)
    copy_aux_vars(tmp_path / "without", tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())
    copy_aux_vars(tmp_path / "from", tmp_path / "to")
    assert torch.equal(read_generic_text(tmp_path / "to", text_dim=4), TEXT)
