from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from cosmos_nemo.job import Job
from cosmos_nemo.job import visual_inputs as module
from cosmos_nemo.job.visual_inputs import VisualInput, VisualInputs
from cosmos_nemo.request import InterpolationRequest, RequestError, Text2WorldRequest, Video2WorldRequest
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.media import file_digest
from cosmos_nemo.stages.visual_input import VisualFacts, visual_facts
from tests.test_layering import ROOT

IMAGE = ROOT / "assets/diffusion/video2world_input0.jpg"


def video(folder: Path, num_frames: int, *, height: int = 8, width: int = 8) -> Path:
    path = folder / f"{num_frames}.npy"
    numpy.save(path, numpy.zeros((num_frames, height, width, 3), numpy.uint8))
    return path


def going_on(path: Path, **fields: Any) -> Video2WorldRequest:
    return Video2WorldRequest(prompt="x", visual_input=path, **fields)


def between(path: Path, **fields: Any) -> InterpolationRequest:
    return InterpolationRequest(prompt="x", visual_input=path, num_frames=10, **fields)


def check(*requests: Text2WorldRequest) -> VisualInputs:
    inputs = VisualInputs(requests)
    for request in requests:
        inputs.check(request)
    return inputs


def test_what_is_found_is_the_content_and_its_facts(tmp_path: Path) -> None:
    path = video(tmp_path, 9)
    [(name, found)] = check(going_on(path, num_input_frames=9)).found.items()
    assert (name, found.sha256) == (path, file_digest(path))
    assert found.facts == VisualFacts(num_frames=9, height=8, width=8, fps=24.0, is_image=False)


def test_text2world_needs_no_file() -> None:
    assert check(Text2WorldRequest(prompt="x")).found == {}


def test_a_file_that_many_requests_name_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = module.visual_facts, []

    def visual_facts(path: Path) -> VisualFacts:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(module, "visual_facts", visual_facts)
    path = video(tmp_path, 9)
    check(going_on(path), going_on(path, seed=2), going_on(path, num_input_frames=9))
    assert seen == [path]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.png", "does not exist"),
        (".", "is a folder"),
        ("empty.mp4", "is empty"),
        ("text.mp4", "cannot be decoded"),
        ("broken.png", "cannot be decoded"),
        ("loop.png", "cannot be opened: Too many levels"),
        ("a\0b.png", r"'.*a\\x00b\.png' is no file's name"),
        ("\ud800.png", "is no file's name"),
        (f"{'x' * 300}.png", "cannot be opened|is no file's name"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "text.mp4").write_text("hello " * 99)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 99)
    with pytest.raises(RequestError, match=says) as refused:
        check(going_on(tmp_path / name))
    assert str(refused.value).startswith("--conditioned_image_or_video_path ")
    with pytest.raises(RequestError) as refused:
        check(going_on(tmp_path / name, line_number=3))
    assert str(refused.value).startswith('"visual_input" ')


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (IMAGE, r"input0\.jpg is an image, and --num_input_frames 9 needs a video"),
        (8, r"8\.npy has 8 frame\(s\), fewer than --num_input_frames 9"),
    ],
)
def test_too_few_frames_to_go_on_from_are_refused(path: Path | int, says: str, tmp_path: Path) -> None:
    file = path if isinstance(path, Path) else video(tmp_path, path)
    with pytest.raises(RequestError, match=says):
        check(going_on(file, num_input_frames=9))
    assert check(going_on(file)).found


@pytest.mark.parametrize(
    "fields",
    [
        {"frame_index_start": 4},
        {"frame_stride": 5},
        {"num_frame_pairs": 5},
        {"frame_index_start": 1, "frame_stride": 2, "num_frame_pairs": 2},
        {"num_input_frames": 6},
    ],
)
def test_too_few_frames_to_fill_in_between_are_refused(tmp_path: Path, fields: dict[str, int]) -> None:
    path = video(tmp_path, 5)
    with pytest.raises(RequestError, match=r"5\.npy has 5 frame\(s\)"):
        check(between(path, **fields))
    less = {name: value - 1 for name, value in fields.items() if name != "frame_index_start"}
    check(between(path, **{"frame_index_start": 0, **less}))


def test_an_image_has_nothing_to_fill_in() -> None:
    with pytest.raises(RequestError, match=r"jpg has 1 frame\(s\)"):
        check(between(IMAGE, num_input_frames=1))


def test_no_video_of_the_run_may_replace_a_file_that_one_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path, 9)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"9\.npy would be replaced by a video of this run"):
        check(going_on(path, video_path=Path("9.npy")))
    first, second = tmp_path / "0.npy", tmp_path / "1.npy"
    with pytest.raises(RequestError, match="would be replaced"):
        check(going_on(path, video_path=first), going_on(first, video_path=second))


def test_an_mp4_of_the_inputs_size_needs_even_sides(tmp_path: Path) -> None:
    odd = going_on(video(tmp_path, 9, width=7), keeps_input_size=True)
    with pytest.raises(RequestError, match=r"has 7 x 8 pixels, and an mp4 needs even sides"):
        check(odd)
    assert check(replace(odd, video_path=tmp_path / "o.npy")).found
    assert check(replace(odd, keeps_input_size=False)).found


def test_nor_may_it_replace_what_lies_beside_such_a_file(tmp_path: Path) -> None:
    path = video(tmp_path, 9)
    with pytest.raises(RequestError, match=r"the .json or .txt beside it would be replaced"):
        check(going_on(path, video_path=tmp_path / "9.mp4"))
    check(going_on(path, video_path=tmp_path / "other" / "9.mp4"))


def test_a_file_that_is_not_any_more_the_one_that_was_looked_at_is_an_error_of_its_video(
    tmp_path: Path,
) -> None:
    path = video(tmp_path, 9)
    request = going_on(path)
    found = {path: VisualInput(sha256=file_digest(path), facts=visual_facts(path))}
    job: Any = SimpleNamespace(visual_inputs=found)
    Job.check_unchanged(job, request)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ItemError, match="is another file than when this run began"):
        Job.check_unchanged(job, request)
    path.unlink()
    with pytest.raises(ItemError, match="cannot be read any more"):
        Job.check_unchanged(job, request)
