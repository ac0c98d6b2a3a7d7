import hashlib
import json
import os
from pathlib import Path

import pytest

from cosmos_nemo.checkpoint import verified
from cosmos_nemo.checkpoint.verified import (
    is_noted_complete,
    mismatches,
    note_complete,
    noted_hashes,
)

SUM = hashlib.md5(b"content").hexdigest()
HASH = hashlib.sha256(b"content").hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    seen: list[Path] = []
    real = verified.digest_of

    def digest_of(path: Path, algorithm: str) -> str:
        seen.append(path)
        return real(path, algorithm)

    monkeypatch.setattr(verified, "digest_of", digest_of)
    return seen


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize(("published", "name"), [(SUM, "MD5"), (HASH, "SHA-256")])
def test_a_file_is_read_once_and_again_when_it_changed(
    published: str, name: str, file: Path, hashed: list[Path]
) -> None:
    for _ in range(3):
        assert mismatches(file.parent, {"model.pt": published}) == []
    assert hashed == [file]
    os.utime(file, ns=(1, 1))
    assert mismatches(file.parent, {"model.pt": published}) == [] and len(hashed) == 2
    file.write_bytes(b"contenT")
    (wrong,) = mismatches(file.parent, {"model.pt": published})
    assert (wrong.path, wrong.published) == (file, published)
    assert str(wrong) == f"{file} has the {name} sum {wrong.found}, not the published {published}"
    again = mismatches(file.parent, {"model.pt": published})
    assert again == [wrong], "a wrong file is never taken for verified"


def test_a_file_that_was_verified_by_another_kind_of_sum_is_read_again(
    file: Path, hashed: list[Path]
) -> None:
    for published in (SUM, HASH, HASH):
        assert mismatches(file.parent, {"model.pt": published}) == []
    assert len(hashed) == 2


def test_the_hashes_that_files_had_are_noted(file: Path) -> None:
    (file.parent / "other.pt").write_bytes(b"content")
    mismatches(file.parent, {"model.pt": HASH, "other.pt": SUM})
    note_complete(file.parent, ["model.pt", "other.pt"])
    assert noted_hashes(file.parent) == {"model.pt": HASH}
    file.write_bytes(b"contenT")
    assert len(mismatches(file.parent, noted_hashes(file.parent))) == 1


def test_what_was_read_before_an_interrupt_is_not_read_again(
    file: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "next.pt").write_bytes(b"content")
    counting = verified.digest_of

    def interrupted(path: Path, algorithm: str) -> str:
        if path.name == "next.pt":
            raise KeyboardInterrupt
        return counting(path, algorithm)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(verified, "digest_of", interrupted)
        mismatches(file.parent, {"model.pt": HASH, "next.pt": HASH})
    assert mismatches(file.parent, {"model.pt": HASH, "next.pt": HASH}) == []
    assert [path.name for path in hashed] == ["model.pt", "next.pt"]


def test_another_published_sum_makes_the_file_be_read_again(file: Path) -> None:
    assert mismatches(file.parent, {"model.pt": SUM}) == []
    assert len(mismatches(file.parent, {"model.pt": "0" * 32})) == 1


def test_missing_files_are_no_mismatch(tmp_path: Path) -> None:
    assert mismatches(tmp_path, {"model.pt": SUM}) == []


def test_a_large_file_is_hashed_in_pieces(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "_CHUNK", 3)
    assert verified.digest_of(file, "md5") == SUM
    assert verified.digest_of(file, "sha256") == HASH


def test_a_folder_is_complete_until_a_file_changes_its_size_or_goes(file: Path, hashed: list[Path]) -> None:
    folder = file.parent
    (folder / "nemo").mkdir()
    (folder / "nemo" / "0.0").write_bytes(b"1")
    assert not is_noted_complete(folder)
    mismatches(folder, {"model.pt": SUM})
    assert not is_noted_complete(folder)
    note_complete(folder, ["model.pt", "nemo/0.0"])
    assert is_noted_complete(folder)
    assert mismatches(folder, {"model.pt": SUM}) == [] and len(hashed) == 1
    (folder / "nemo" / "0.0").write_bytes(b"12")
    assert not is_noted_complete(folder)
    (folder / "nemo" / "0.0").unlink()
    assert not is_noted_complete(folder)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": 3}', '{"files": {"model.pt": 3}}', "\0"])
def test_a_damaged_record_counts_as_none(file: Path, damage: str, hashed: list[Path]) -> None:
    mismatches(file.parent, {"model.pt": SUM})
    (file.parent / ".cache" / "cosmos_nemo.json").write_text(damage)
    assert not is_noted_complete(file.parent)
    assert mismatches(file.parent, {"model.pt": SUM}) == [] and len(hashed) == 2
    assert mismatches(file.parent, {"model.pt": SUM}) == [] and len(hashed) == 2


def test_a_record_that_cannot_be_written_stops_nothing(file: Path) -> None:
    (file.parent / ".cache").write_text("a file where the folder belongs")
    assert mismatches(file.parent, {"model.pt": SUM}) == []
    note_complete(file.parent, ["model.pt"])
    assert not is_noted_complete(file.parent)


def test_the_record_leaves_nothing_else_behind(file: Path) -> None:
    note_complete(file.parent, ["model.pt"])
    assert [path.name for path in (file.parent / ".cache").iterdir()] == ["cosmos_nemo.json"]
    assert json.loads((file.parent / ".cache" / "cosmos_nemo.json").read_text())["complete"] is True


def test_a_folder_may_hold_the_files_of_two_repositories(file: Path, hashed: list[Path]) -> None:
    folder = file.parent
    mismatches(folder, {"model.pt": SUM})
    note_complete(folder, ["model.pt"])
    (folder / "tokenizer.json").write_bytes(b"{}")
    note_complete(folder, ["tokenizer.json"])
    assert is_noted_complete(folder)
    assert mismatches(folder, {"model.pt": SUM}) == [] and len(hashed) == 1
    file.write_bytes(b"longer content")
    assert not is_noted_complete(folder)


def test_what_was_removed_since_is_not_needed_any_more(file: Path) -> None:
    (file.parent / "old.json").write_bytes(b"{}")
    note_complete(file.parent, ["old.json"])
    (file.parent / "old.json").unlink()
    note_complete(file.parent, ["model.pt"])
    assert is_noted_complete(file.parent)
