from pathlib import Path

import pytest

from cosmos_nemo.checkpoint.locate import EMBEDDED
from cosmos_nemo.tools.main import main


@pytest.fixture(autouse=True)
def _groups_outlive_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process go on with them."""
    monkeypatch.setattr("cosmos_nemo.parallel.groups.stop", lambda: None)


def run(folder: Path, *flags: str) -> int:
    return main(["make-nano", str(folder), "--device", "cpu", "--fraction", "1e-6", *flags])


def test_what_need_not_be_made_is_taken_from_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--only", "Cosmos-Nano-WorldInterpolator", "--seconds", "1e-9") == 3
    assert capsys.readouterr().out.endswith(f"{tmp_path}: not finished, call again\n")
    taken = {path.name for path in (tmp_path / "assets").iterdir()}
    assert taken == {path.name for path in EMBEDDED.iterdir()} - {"Cosmos-Nano-WorldInterpolator"}
    metadata = "Cosmos-Nano-Text2World/nemo/weights/.metadata"
    assert (tmp_path / "assets" / metadata).read_bytes() == (EMBEDDED / metadata).read_bytes()


def test_a_part_that_does_not_exist_is_refused_with_all_that_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--only", "Cosmos-Nano-Video") == 2
    error = capsys.readouterr().err
    assert "--only Cosmos-Nano-Video is no part of this" in error and "Cosmos-Nano-Video2World" in error
    assert not (tmp_path / "assets").exists()


def test_without_the_flag_nothing_is_taken(tmp_path: Path) -> None:
    assert run(tmp_path, "--seconds", "1e-9") == 3
    assert not (tmp_path / "assets").exists()


@pytest.mark.parametrize("fraction", ["0", "1.5", "nan"])
def test_a_fraction_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fraction: str
) -> None:
    assert run(tmp_path, "--fraction", fraction) == 2
    assert "--fraction" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_making_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--seconds", "1e-9") == 3
    assert run(tmp_path, "--seed", "4") == 2
    assert "another seed, fraction or --only" in capsys.readouterr().err
