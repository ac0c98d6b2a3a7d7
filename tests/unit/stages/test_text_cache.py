import logging
from pathlib import Path

import pytest
import torch

from cosmos_nemo.stages.text_cache import EncodedText, TextCache, cache_key

FACTS = {"prompt": "a robot", "encoder": "abc", "dtype": torch.bfloat16, "text_length": 8}


def entry(dtype: torch.dtype = torch.bfloat16) -> EncodedText:
    text_LD = torch.arange(32.0).reshape(8, 4).to(dtype)
    return EncodedText(text_LD=text_LD, num_tokens=11, kept_characters=5)


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    cache = TextCache(tmp_path / "not" / "there" / "yet")
    cache.write("key", entry())
    found = cache.read("key", shape=(8, 4), dtype=torch.bfloat16)
    assert found is not None
    assert torch.equal(found.text_LD, entry().text_LD) and found.text_LD.dtype == torch.bfloat16
    assert (found.num_tokens, found.kept_characters) == (11, 5)


def test_a_missing_entry_is_none_and_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert TextCache(tmp_path).read("key", shape=(8, 4), dtype=torch.bfloat16) is None
    assert TextCache(tmp_path / "absent").read("key", shape=(8, 4), dtype=torch.bfloat16) is None
    assert not caplog.records


@pytest.mark.parametrize("damage", ["empty", "truncated", "other bytes", "no facts"])
def test_a_damaged_entry_is_reported_and_can_be_written_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TextCache(tmp_path)
    cache.write("key", entry())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "no facts":
        from safetensors.torch import save

        whole = save({"text_LD": entry().text_LD}) + b""
    path.write_bytes(
        {"empty": b"", "truncated": whole[:-5], "other bytes": b"x" * 99, "no facts": whole}[damage]
    )

    with caplog.at_level(logging.WARNING):
        assert cache.read("key", shape=(8, 4), dtype=torch.bfloat16) is None
    assert str(path) in caplog.text and "damaged" in caplog.text

    cache.write("key", entry())
    assert cache.read("key", shape=(8, 4), dtype=torch.bfloat16) is not None


@pytest.mark.parametrize(("shape", "dtype"), [((8, 5), torch.bfloat16), ((8, 4), torch.float32)])
def test_an_entry_of_another_form_is_reported(
    shape: tuple[int, int], dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TextCache(tmp_path)
    cache.write("key", entry())
    assert cache.read("key", shape=shape, dtype=dtype) is None
    assert "expected" in caplog.text


def test_only_whole_entries_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*paths: object) -> None:
        raise OSError("No space left on device")

    cache = TextCache(tmp_path)
    monkeypatch.setattr("os.replace", fails)
    cache.write("key", entry())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    TextCache(tmp_path / "file" / "cache").write("key", entry())
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    "change",
    [{"prompt": "a robot "}, {"encoder": "abd"}, {"dtype": torch.float32}, {"text_length": 9}],
)
def test_the_key_changes_with_everything_that_decides_an_embedding(change: dict) -> None:
    assert cache_key(**FACTS) == cache_key(**FACTS)
    assert cache_key(**{**FACTS, **change}) != cache_key(**FACTS)


def test_the_cache_folder_does_not_hold_the_prompt(tmp_path: Path) -> None:
    cache = TextCache(tmp_path)
    cache.write(cache_key(**FACTS), entry())
    (path,) = tmp_path.iterdir()
    assert b"robot" not in path.read_bytes() and "robot" not in path.name
