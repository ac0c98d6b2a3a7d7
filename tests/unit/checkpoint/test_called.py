from pathlib import Path

import pytest
import torch

from cosmos_nemo.checkpoint.called import called
from cosmos_nemo.checkpoint.writer.nemo_context import NeMoContext, write_context

KNOWN = ("One", "Two")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(("One", "One"), ("One/nemo/weights", "One"), ("One/model.pt", "One"), ("Two/One", "One")),
        ("models--me--Two/snapshots/0123abcd/nemo/weights", "Two"),
        *(("One-unfinished", None), ("mine", None), ("One/a/b/c/d/weights", None)),
    ],
)
def test_the_nearest_folder_with_a_models_name_tells(place: str, name: str | None, tmp_path: Path) -> None:
    assert called(tmp_path / place, KNOWN) == name


def test_a_relative_path_lies_in_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Two").mkdir()
    monkeypatch.chdir(tmp_path / "Two")
    assert called(Path("model.pt"), KNOWN) == called(Path("."), KNOWN) == "Two"


@pytest.mark.parametrize(("model", "name"), [("Two", "Two"), ("Three", "One")])
def test_nemos_context_counts_more_than_a_folder(model: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "One" / "weights").mkdir(parents=True)
    write_context(tmp_path / "One", NeMoContext(model=model, overrides={}), dtype=torch.bfloat16)
    assert called(tmp_path / "One", KNOWN) == called(tmp_path / "One" / "weights", KNOWN) == name
