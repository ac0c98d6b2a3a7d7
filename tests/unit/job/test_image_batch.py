import json
from pathlib import Path

import pytest

from cosmos_nemo.job.batch_file import BatchFile
from cosmos_nemo.job.image_batch import read_image_batch
from cosmos_nemo.request import RequestError, Text2ImageRequest

TEMPLATE = Text2ImageRequest(prompt="", seed=7, negative_prompt="ugly", num_steps=3)


def batch_of(folder: Path, *entries: object) -> BatchFile:
    (folder / "batch.json").write_text(json.dumps(entries, indent=1))
    return read_image_batch(folder / "batch.json", template=TEMPLATE)


def test_an_entry_gives_prompt_and_path_and_the_flags_the_rest(tmp_path: Path) -> None:
    batch = batch_of(
        tmp_path,
        {"prompt": "a ball", "output_image": "out/ball.png"},
        {"prompt": "a cube", "seed": 8, "negative_prompt": ""},
    )
    first, second = batch.requests
    assert isinstance(first, Text2ImageRequest)
    assert (first.prompt, first.seed, first.negative_prompt, first.num_steps) == ("a ball", 7, "ugly", 3)
    assert (first.video_path, first.line_number) == (Path("out/ball.png"), 1)
    assert (second.seed, second.negative_prompt, second.video_path) == (8, "", Path("output_1.jpg"))
    assert (batch.bad_lines, batch.passed_over) == ((), ())


def test_bad_entries_keep_their_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    batch = batch_of(
        tmp_path,
        {"prompt": "a"},
        {"output_image": "b.jpg"},
        *("c", {"prompt": " "}, {"prompt": "e", "output_image": ""}),
        *({"prompt": "f", "output_image": 6}, {"prompt": "g", "seed": "7"}),
        {"prompt": "h", "output_image": "a\0.jpg"},
        {"prompt": "i", "output_image": "\ud800.jpg"},
        {"prompt": "z", "id": 1},
    )
    assert [(r.prompt, r.video_path.name) for r in batch.requests] == [
        ("a", "output_0.jpg"),
        ("z", "output_9.jpg"),
    ]
    said = [str(line) for line in batch.bad_lines]
    assert said[:6] == [
        'entry 2: it has no "prompt"',
        "entry 3: it holds a str, not an object with a prompt",
        'entry 4: its "prompt" is empty',
        'entry 5: its "output_image" is empty',
        'entry 6: "output_image" is 6, no text',
        'entry 7: "seed" is "7", no whole number',
    ]
    assert all("is no file's name" in line for line in said[6:]) and len(said) == 8
    assert batch.passed_over == ("id",)


@pytest.mark.parametrize("second", ["a.jpg", "./b/../a.jpg", "a.png", "link/a.jpg"])
def test_an_entry_never_replaces_the_image_of_another_nor_the_files_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    batch = batch_of(
        tmp_path,
        *({"prompt": "x", "output_image": path} for path in ("a.jpg", second, "b/a.jpg")),
    )
    assert [str(r.video_path) for r in batch.requests] == ["a.jpg", "b/a.jpg"]
    [bad] = batch.bad_lines
    assert str(bad) == f"entry 2: {Path(second)} and what lies beside it are those of entry 1"


def test_an_entry_whose_manifest_would_replace_the_batch_file_is_bad(tmp_path: Path) -> None:
    image = str(tmp_path / "batch.png")
    batch = batch_of(tmp_path, {"prompt": "x", "output_image": image}, {"prompt": "y"})
    assert [str(line) for line in batch.bad_lines] == [
        f"entry 1: what lies beside {image} would replace {tmp_path / 'batch.json'}"
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no JSON"),
        ('{"prompt": "a"}\n{"prompt": "b"}', "is no JSON"),
        ('{"prompt": "a"}', "holds a dict, not a list"),
        ("[]", "holds no entry like"),
        ('[{"text": "a"}]', 'holds no entry like {"prompt": "A red ball."}; entry 1: it has no "prompt"'),
        ("[" * 200_000, "is nested too deeply"),
    ],
)
def test_a_file_that_holds_no_images_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(RequestError, match="--batch_input_path") as caught:
        read_image_batch(tmp_path / "b.json", template=TEMPLATE)
    assert says in str(caught.value)


def test_a_file_that_is_not_there_or_in_another_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_image_batch(tmp_path / "none.json", template=TEMPLATE)
    (tmp_path / "b.json").write_bytes('[{"prompt": "a"}]'.encode("utf-16"))
    with pytest.raises(RequestError, match="UTF-16, not UTF-8"):
        read_image_batch(tmp_path / "b.json", template=TEMPLATE)
    (tmp_path / "b.json").write_bytes(b'[{"prompt": "caf\xe9"}]')
    with pytest.raises(RequestError, match="is no JSON"):
        read_image_batch(tmp_path / "b.json", template=TEMPLATE)
