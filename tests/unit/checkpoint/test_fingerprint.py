import os

import pytest

from cosmos_nemo.checkpoint.fingerprint import fingerprint


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "a"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "large").write_bytes(bytes(2**20))
    (folder / "small").write_bytes(b"12345")
    return folder


def test_it_is_sixteen_hex_digits_and_stays_the_same(folder):
    assert len(fingerprint(folder)) == 16
    int(fingerprint(folder), 16)
    assert fingerprint(folder) == fingerprint(folder)


def test_where_the_folder_lies_and_when_it_was_written_do_not_count(folder):
    before = fingerprint(folder)
    os.utime(folder / "small", (1, 1))
    assert fingerprint(folder.rename(folder.with_name("b"))) == before


def test_a_files_own_name_does_not_count(folder):
    before = fingerprint(folder / "small")
    assert fingerprint((folder / "small").rename(folder / "other")) == before


@pytest.mark.parametrize("at", [0, (2**20 - 4096) // 15, 2**20 - 1])
def test_a_changed_byte_of_a_sampled_piece_counts(folder, at):
    before = fingerprint(folder)
    with (folder / "sub" / "large").open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    assert fingerprint(folder) != before


def test_a_changed_byte_of_a_small_file_counts(folder):
    before = fingerprint(folder)
    (folder / "small").write_bytes(b"12x45")
    assert fingerprint(folder) != before


def test_names_and_sizes_count(folder):
    before = fingerprint(folder)
    (folder / "small").rename(folder / "renamed")
    renamed = fingerprint(folder)
    (folder / "sub" / "large").write_bytes(bytes(2**20 + 1))
    assert len({before, renamed, fingerprint(folder)}) == 3


def test_links_are_followed_as_the_hubs_cache_needs(folder, tmp_path):
    links = tmp_path / "links"
    (links / "sub").mkdir(parents=True)
    (links / "sub" / "large").symlink_to(folder / "sub" / "large")
    (links / "small").symlink_to(folder / "small")
    assert fingerprint(links) == fingerprint(folder)


def test_a_huge_file_takes_no_time(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**36)  # 64 GiB that take no disk
    assert len(fingerprint(tmp_path)) == 16
