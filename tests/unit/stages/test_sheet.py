import numpy
import pytest

from cosmos_nemo.stages.sheet import contact_sheet, evenly_spaced


def video(num_frames: int, *, height: int = 64, width: int = 80) -> numpy.ndarray:
    """Frames of one grey each, 10 times their number."""
    greys = numpy.arange(num_frames)[:, None, None, None] * 10
    return (greys + numpy.zeros((num_frames, height, width, 3))).astype(numpy.uint8)


def test_frames_are_evenly_spaced_and_both_ends_are_among_them() -> None:
    assert evenly_spaced(33, count=5) == [0, 8, 16, 24, 32]
    assert evenly_spaced(10, count=4) == [0, 3, 6, 9]
    assert evenly_spaced(3, count=8) == [0, 1, 2]
    assert evenly_spaced(9, count=1) == [0]


def test_each_video_has_a_row_of_its_frames() -> None:
    sheet = numpy.asarray(contact_sheet([("one", video(21)), ("two", video(5))], num_frames=5))
    assert sheet.shape == (12 + 2 * (20 + 64 + 12), 12 + 5 * 84 - 4 + 12, 3)
    for row, greys in enumerate([[0, 50, 100, 150, 200], [0, 10, 20, 30, 40]]):
        line = sheet[12 + 20 + 32 + row * 96]
        assert [int(line[12 + 40 + column * 84, 0]) for column in range(5)] == greys


def test_a_text_stands_above_its_row() -> None:
    with_text = numpy.asarray(contact_sheet([("some words", video(3))], num_frames=3))
    assert (with_text[12:32] < 100).any()


def test_a_long_text_is_wrapped_and_cut_within_the_sheet() -> None:
    sheet = numpy.asarray(contact_sheet([("word " * 500, video(3))], num_frames=3))
    assert sheet.shape[0] == 12 + 4 * 20 + 64 + 12
    assert sheet[12:92, -10:].min() == 255


def test_large_frames_are_made_smaller() -> None:
    sheet = contact_sheet([("", video(8, height=704, width=1280))], num_frames=8)
    assert sheet.width <= 1624 and sheet.height < 150


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 videos"):
        contact_sheet([])
    with pytest.raises(ValueError, match="0 frames"):
        contact_sheet([("", video(3))], num_frames=0)
