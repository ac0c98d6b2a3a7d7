import pytest

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.checkpoint.writer.new_path import new_path


def test_a_folder_appears_under_its_name_at_the_end(tmp_path):
    target = tmp_path / "deep" / "new"
    with new_path(target) as partial:
        partial.mkdir()
        (partial / "a").touch()
        assert not target.exists()
    assert [file.name for file in target.iterdir()] == ["a"]
    assert [file.name for file in target.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_nothing_is_left_when_the_body_fails(tmp_path, make):
    with pytest.raises(KeyboardInterrupt), new_path(tmp_path / "new") as partial:
        getattr(partial, make)()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_what_exists_is_never_replaced(tmp_path, make):
    getattr(tmp_path / "new", make)()
    with (
        pytest.raises(CheckpointError, match="new exists already: remove it, or name another target"),
        new_path(tmp_path / "new"),
    ):
        pytest.fail("the body ran")


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "new"
    with pytest.raises(OSError, match="not empty"), new_path(target) as partial:
        partial.mkdir()
        target.mkdir()
        (target / "theirs").touch()
    assert [file.name for file in tmp_path.iterdir()] == ["new"]
