import json
import subprocess
import sys
from pathlib import Path

import imageio
import imageio_ffmpeg
import numpy
import pytest

from cosmos_nemo.stages.video_reading import VideoError, VideoFacts, read_frames, video_facts

FRAMES = (numpy.arange(21)[:, None, None, None] * 10 + numpy.zeros((21, 32, 48, 3))).astype(numpy.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    with imageio.get_writer(
        tmp_path / "a.mp4", format="FFMPEG", mode="I", fps=12, macro_block_size=1
    ) as writer:
        for frame in FRAMES:
            writer.append_data(frame)
    return tmp_path / "a.mp4"


def test_an_mp4_is_read_whole_and_in_order(video: Path) -> None:
    assert video_facts(video) == VideoFacts(num_frames=21, height=32, width=48, fps=12)
    frames = numpy.stack([*read_frames(video)])
    assert frames.shape == FRAMES.shape and frames.dtype == numpy.uint8
    assert numpy.abs(frames.astype(int) - FRAMES).max() < 8


def test_frames_at_uneven_times_are_neither_doubled_nor_dropped(video: Path) -> None:
    uneven = video.with_name("uneven.mp4")
    times = r"setpts=if(gt(N\,7)\,N*1.7\,N)/12/TB"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(video), "-vf", times]
    subprocess.run([*command, "-fps_mode", "passthrough", str(uneven)], check=True)
    frames = numpy.stack([*read_frames(uneven)])
    assert len(frames) == 21 and video_facts(uneven).num_frames == 21
    assert numpy.abs(frames.astype(int) - FRAMES).max() < 10


def test_a_turned_video_has_the_sides_of_its_frames(video: Path) -> None:
    turned = video.with_name("turned.mp4")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-display_rotation",
        "90",
        "-i",
        str(video),
    ]
    subprocess.run([*command, "-c", "copy", str(turned)], check=True)
    facts = video_facts(turned)
    assert (facts.height, facts.width) == next(read_frames(turned)).shape[:2] == (48, 32)


def test_reading_may_stop_early(video: Path) -> None:
    frames = read_frames(video)
    next(frames)
    frames.close()
    assert next(frames, None) is None


@pytest.mark.parametrize("kept", [0, 10, 1000])
def test_a_cut_mp4_is_named(video: Path, kept: int) -> None:
    video.write_bytes(video.read_bytes()[:kept])
    with pytest.raises(VideoError, match=r"a\.mp4 cannot be decoded"):
        video_facts(video)


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    for name in ("b.mp4", "b.npy"):
        with pytest.raises(VideoError, match=f"{name} does not exist"):
            video_facts(tmp_path / name)


def test_without_ffmpeg_the_way_out_is_an_array(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(VideoError, match=r"needs ffmpeg.*\.npy"):
        video_facts(video)


def test_an_array_is_a_video_with_the_frame_rate_beside_it(tmp_path: Path) -> None:
    numpy.save(tmp_path / "b.npy", FRAMES)
    assert video_facts(tmp_path / "b.npy") == VideoFacts(num_frames=21, height=32, width=48, fps=24)
    (tmp_path / "b.json").write_text('{"fps": 12.5}')
    assert video_facts(tmp_path / "b.npy").fps == 12.5
    assert numpy.array_equal(numpy.stack([*read_frames(tmp_path / "b.npy")]), FRAMES)


@pytest.mark.parametrize(
    "array", [FRAMES.astype(numpy.float32), FRAMES[0], FRAMES[..., :1], FRAMES[:0], numpy.array(3)]
)
def test_an_array_of_another_kind_is_named(tmp_path: Path, array: numpy.ndarray) -> None:
    numpy.save(tmp_path / "b.npy", array)
    with pytest.raises(VideoError, match=r"b\.npy holds .* a video is uint8 \[T, H, W, 3\]"):
        video_facts(tmp_path / "b.npy")


def test_a_damaged_array_is_named(tmp_path: Path) -> None:
    numpy.save(tmp_path / "b.npy", FRAMES)
    content = (tmp_path / "b.npy").read_bytes()
    for kept in (0, 20, len(content) - 1):
        (tmp_path / "b.npy").write_bytes(content[:kept])
        with pytest.raises(VideoError, match=r"b\.npy cannot be read as an array"):
            video_facts(tmp_path / "b.npy")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"fps": "fast"}), json.dumps({"fps": 0})])
def test_a_bad_frame_rate_is_named(tmp_path: Path, content: str) -> None:
    numpy.save(tmp_path / "b.npy", FRAMES)
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(VideoError, match=r"b\.json"):
        video_facts(tmp_path / "b.npy")


def test_a_file_cut_after_its_header_is_read_to_the_cut_with_a_warning(
    video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    streamed = video.with_name("streamed.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(video), "-g", "1"]
    subprocess.run([*command, "-c:v", "mpeg4", "-movflags", "+faststart", str(streamed)], check=True)
    assert video_facts(streamed).num_frames == 21 and not caplog.records
    content = streamed.read_bytes()
    streamed.write_bytes(content[: content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2])
    assert 1 <= video_facts(streamed).num_frames < 18
    assert "its header says about 21" in caplog.text


@pytest.mark.parametrize("name", ["a.txt", "a.mp4", "a.gif"])
def test_only_containers_of_videos_are_opened(video: Path, name: str) -> None:
    other = video.with_name(name)
    if name == "a.gif":
        with imageio.get_writer(other) as writer:
            writer.append_data(FRAMES[0])
    elif name == "a.mp4":  # a list of files to play in turn
        video.rename(video.with_name("b.mp4"))
        other.write_text("ffconcat version 1.0\nfile b.mp4\n")
    else:
        other.write_text("ffmpeg draws the letters of a text.\n" * 100)
    with pytest.raises(VideoError, match="is no video: it is none of"):
        video_facts(other)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-f",
        "lavfi",
        "-i",
        "sine=duration=0.2",
    ]
    subprocess.run([*command, str(tmp_path / "a.mp4")], check=True)
    with pytest.raises(VideoError, match="has no picture, only sound"):
        video_facts(tmp_path / "a.mp4")
