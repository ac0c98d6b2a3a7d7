import json
from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_nemo.job.batch_file import BadLine, BatchFile, read_batch
from cosmos_nemo.request import RequestError, Text2WorldRequest, Video2WorldRequest
from tests.test_layering import ROOT

TEMPLATE = Text2WorldRequest(prompt="", seed=7, negative_prompt="ugly", num_steps=3)


def batch_of(folder: Path, *lines: str, end: str = "\n") -> BatchFile:
    return batch_of_bytes(folder, end.join(lines).encode())


def batch_of_bytes(folder: Path, content: bytes) -> BatchFile:
    path = folder / "batch.jsonl"
    path.write_bytes(content)
    return read_batch(path, template=TEMPLATE, folder=folder / "out")


def test_a_line_gives_its_prompt_and_the_flags_the_rest(tmp_path: Path) -> None:
    (request,) = batch_of(tmp_path, '{"prompt": "a ball"}').requests
    assert (request.prompt, request.seed, request.negative_prompt, request.num_steps) == (
        "a ball",
        7,
        "ugly",
        3,
    )
    assert (request.video_path, request.line_number) == (tmp_path / "out" / "0.mp4", 1)


def test_a_line_may_have_a_seed_and_a_negative_prompt_of_its_own(tmp_path: Path) -> None:
    (request,) = batch_of(tmp_path, '{"prompt": "a", "seed": 8, "negative_prompt": ""}').requests
    assert (request.seed, request.negative_prompt) == (8, "")


def test_empty_and_bad_lines_keep_their_number_and_the_rest_goes_on(tmp_path: Path) -> None:
    batch = batch_of(
        tmp_path,
        *('{"prompt": "a"}', "", "{prompt: b}", '{"text": "c"}', "[1]", '{"prompt": 4}', '{"prompt": " "}'),
        *("  ", '{"prompt": "h", "seed": "8"}', '{"prompt": "i", "seed": true}', '{"prompt": "z"}', ""),
    )
    assert [(r.prompt, r.video_path.name) for r in batch.requests] == [("a", "0.mp4"), ("z", "10.mp4")]
    assert [line.number for line in batch.bad_lines] == [3, 4, 5, 6, 7, 9, 10]
    said = [str(line) for line in batch.bad_lines]
    assert said[0].startswith("line 3: it is no JSON (Expecting")
    assert said[1:] == [
        'line 4: it has no "prompt"',
        "line 5: it holds a list, not an object with a prompt",
        'line 6: "prompt" is 4, no text',
        'line 7: its "prompt" is empty',
        'line 9: "seed" is "8", no whole number',
        'line 10: "seed" is true, no whole number',
    ]


@pytest.mark.parametrize(("value", "shown"), [("[" * 900 + "]" * 900, "a list"), ('{"a": 1}', "an object")])
def test_what_is_no_text_is_not_written_out_at_length(tmp_path: Path, value: str, shown: str) -> None:
    batch = batch_of(tmp_path, '{"prompt": "a"}', f'{{"prompt": {value}}}')
    assert [str(line) for line in batch.bad_lines] == [f'line 2: "prompt" is {shown}, no text']


def test_windows_files_read_like_others(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, '\ufeff{"prompt": "a\u2028b"}', '{"prompt": "c"}', end="\r\n")
    assert [request.prompt for request in batch.requests] == ["a\u2028b", "c"]
    assert batch.bad_lines == ()


def test_a_byte_that_is_no_utf_8_makes_one_bad_line(tmp_path: Path) -> None:
    batch = batch_of_bytes(
        tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "caf\xe9"}\r\n{"prompt": "\xc3\xa9"}\r\n'
    )
    assert [(r.prompt, r.line_number) for r in batch.requests] == [("a", 1), ("\u00e9", 4)]
    assert [str(line) for line in batch.bad_lines] == ["line 3: it is no UTF-8 (byte 0xe9 at position 15)"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_a_file_in_another_unicode_is_refused_by_its_mark(tmp_path: Path, encoding: str) -> None:
    content = '{"prompt": "a"}\n'
    marked = content if encoding[-2:] not in ("le", "be") else f"\ufeff{content}"
    with pytest.raises(RequestError, match=rf"batch\.jsonl is {encoding[:6].upper()}, not UTF-8"):
        batch_of_bytes(tmp_path, marked.encode(encoding))


@pytest.mark.parametrize(
    "line",
    ["[" * 200_000, '{"prompt": ' * 200_000, '{"prompt": "a", "x": ' + "[" * 99_999 + "]" * 99_999 + "}"],
)
def test_a_line_that_is_nested_without_end_is_bad_and_the_rest_goes_on(tmp_path: Path, line: str) -> None:
    batch = batch_of(tmp_path, line, '{"prompt": "b"}')
    assert [request.prompt for request in batch.requests] == ["b"]
    (bad,) = batch.bad_lines
    assert str(bad) == "line 1: it is nested too deeply"


def test_fields_that_nothing_is_made_of_are_told(tmp_path: Path) -> None:
    batch = batch_of(
        tmp_path, '{"prompt": "a", "visual_input": "x.mp4", "sede": 3}', '{"prompt": "b", "id": 1}'
    )
    assert batch.passed_over == ("id", "sede")
    assert [request.seed for request in batch.requests] == [7, 7]


def test_the_documents_batch_file_is_good() -> None:
    path = ROOT / "assets/diffusion/batch_inputs/text2world.jsonl"
    batch = read_batch(path, template=TEMPLATE, folder=Path("out"))
    prompts = [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [request.prompt for request in batch.requests] == prompts
    assert (batch.bad_lines, batch.passed_over) == ((), ())


@pytest.mark.parametrize("content", [b"", b"\n \n", b"nonsense", b'{"prompt": "\xff"}'])
def test_a_file_without_a_good_line_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"--batch_input_path .*batch\.jsonl"):
        read_batch(path, template=TEMPLATE, folder=tmp_path)


def test_the_refusal_names_the_first_bad_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="line 2: it is no JSON"):
        batch_of(tmp_path, "", "x", "y")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(RequestError, match=r"--batch_input_path .* cannot be read"):
        read_batch(tmp_path / path, template=TEMPLATE, folder=tmp_path)


def test_a_bad_line_says_where_it_stands() -> None:
    assert str(BadLine(number=4, reason="why")) == "line 4: why"


GOING_ON = Video2WorldRequest(prompt="", visual_input=Path(), num_input_frames=9)
BOTH = '{"prompt": "a", "visual_input": "x.mp4"}'


def visual_batch_of(folder: Path, *lines: str, prompt_is_made: bool = False) -> BatchFile:
    path = folder / "batch.jsonl"
    path.write_text("\n".join(lines))
    return read_batch(path, template=GOING_ON, folder=folder / "out", prompt_is_made=prompt_is_made)


def test_a_line_names_its_visual_input_from_the_working_folder(tmp_path: Path) -> None:
    [request] = visual_batch_of(tmp_path, BOTH).requests
    assert request == replace(
        GOING_ON,
        prompt="a",
        visual_input=Path("x.mp4"),
        video_path=tmp_path / "out" / "0.mp4",
        line_number=1,
    )


def test_lines_without_a_visual_input_or_a_prompt_are_bad(tmp_path: Path) -> None:
    lines = ['{"prompt": "b"}', '{"prompt": "c", "visual_input": " "}', '{"visual_input": "x.mp4"}', "3"]
    batch = visual_batch_of(tmp_path, BOTH, *lines, '{"prompt": "d", "visual_input": null}')
    assert [request.line_number for request in batch.requests] == [1]
    assert [str(line) for line in batch.bad_lines] == [
        'line 2: it has no "visual_input"',
        'line 3: its "visual_input" is empty',
        'line 4: it has no "prompt"',
        "line 5: it holds a int, not an object with a visual input",
        'line 6: "visual_input" is null, no text',
    ]


def test_where_an_upsampler_writes_the_prompt_a_line_needs_none(tmp_path: Path) -> None:
    batch = visual_batch_of(
        tmp_path, '{"visual_input": "x"}', '{"visual_input": "y", "prompt": ""}', prompt_is_made=True
    )
    assert [request.prompt for request in batch.requests] == ["", ""]
    assert (batch.bad_lines, batch.passed_over) == ((), ())


def test_a_prompt_that_an_upsampler_does_not_heed_is_told(tmp_path: Path) -> None:
    assert visual_batch_of(tmp_path, BOTH, prompt_is_made=True).passed_over == ("prompt",)
    assert visual_batch_of(tmp_path, BOTH).passed_over == ()


def test_text2world_does_not_care_what_a_visual_input_is(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, '{"prompt": "a", "visual_input": null}')
    assert (len(batch.requests), batch.bad_lines) == (1, ())


@pytest.mark.parametrize(
    ("prompt_is_made", "sample"),
    [
        (True, r'\{"visual_input": "ball.mp4"\}; line 1'),
        (False, r'\{"visual_input": "ball.mp4", "prompt": "A red'),
    ],
)
def test_a_refusal_shows_what_a_line_needs(tmp_path: Path, prompt_is_made: bool, sample: str) -> None:
    with pytest.raises(RequestError, match=sample):
        visual_batch_of(tmp_path, '{"prompt": "a"}', prompt_is_made=prompt_is_made)


@pytest.mark.parametrize(("name", "is_made"), [("video2world_ps", True), ("video2world_wo_ps", False)])
def test_the_documents_batch_files_of_visual_inputs_are_good(name: str, is_made: bool) -> None:
    path = ROOT / f"assets/diffusion/batch_inputs/{name}.jsonl"
    batch = read_batch(path, template=GOING_ON, folder=Path("out"), prompt_is_made=is_made)
    assert [(ROOT / request.visual_input).is_file() for request in batch.requests] == [True, True]  # type: ignore[attr-defined]
    assert (batch.bad_lines, batch.passed_over) == ((), ())
