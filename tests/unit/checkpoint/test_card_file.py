import pytest

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.checkpoint.card_file import find_card_file, read_card_file, write_card_file

FIELDS = {"network": {"num_layers": 4}}


def test_the_fields_come_back_from_the_folder_its_weights_and_a_file_in_it(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "model.pt").touch()
    write_card_file(tmp_path, FIELDS)
    for path in (tmp_path, tmp_path / "weights", tmp_path / "model.pt"):
        assert read_card_file(path) == FIELDS


def test_a_card_inside_weights_comes_first(tmp_path):
    (tmp_path / "weights").mkdir()
    write_card_file(tmp_path, FIELDS)
    write_card_file(tmp_path / "weights", {"num_steps": 3})
    assert read_card_file(tmp_path / "weights") == {"num_steps": 3}


def test_the_card_of_another_folder_above_does_not_count(tmp_path):
    (tmp_path / "nemo").mkdir()
    write_card_file(tmp_path, FIELDS)
    assert find_card_file(tmp_path / "nemo") is None
    assert read_card_file(tmp_path / "nemo") == {}


def test_a_repository_may_have_its_card_in_its_nemo_folder(tmp_path):
    (tmp_path / "nemo").mkdir()
    write_card_file(tmp_path / "nemo", FIELDS)
    assert read_card_file(tmp_path) == read_card_file(tmp_path / "nemo") == FIELDS
    write_card_file(tmp_path, {"num_steps": 3})
    assert read_card_file(tmp_path) == {"num_steps": 3}
    assert read_card_file(tmp_path / "nemo") == FIELDS


def test_a_card_deeper_than_the_nemo_folder_does_not_count(tmp_path):
    (tmp_path / "nemo" / "weights").mkdir(parents=True)
    write_card_file(tmp_path / "nemo" / "weights", FIELDS)
    assert find_card_file(tmp_path) is None


def test_a_file_has_the_card_beside_it_and_none_of_a_nemo_folder(tmp_path):
    (tmp_path / "nemo").mkdir()
    (tmp_path / "nemo" / "model.pt").touch()
    write_card_file(tmp_path, FIELDS)
    assert find_card_file(tmp_path / "nemo" / "model.pt") is None


def test_no_fields_write_no_file(tmp_path):
    write_card_file(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_card_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "card.json").write_text(text, encoding="latin-1")
    with pytest.raises(CatalogError, match=r"card\.json is no JSON"):
        read_card_file(tmp_path)
