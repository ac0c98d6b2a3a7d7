import io
import itertools
import struct
import subprocess
import sys
from pathlib import Path

import imageio
import imageio_ffmpeg
import numpy
import pytest
import torch
from PIL import Image, ImageOps

from cosmos_nemo.stages import visual_input
from cosmos_nemo.stages.visual_input import (
    VisualFacts,
    VisualInputError,
    cropped,
    cropped_pixels,
    read_frames_at,
    read_last_frames,
    to_pixels,
    unit_pixels,
    visual_facts,
)

HEIGHT, WIDTH = 57, 101  # odd, and prime to each other
PICTURE = numpy.zeros((HEIGHT, WIDTH, 3), numpy.uint8)
PICTURE[:, : WIDTH // 2] = (220, 30, 40)
PICTURE[: HEIGHT // 2, WIDTH // 2 :] = (20, 90, 230)
BRIGHTNESS = numpy.arange(12) * 20
FRAMES = (BRIGHTNESS[:, None, None, None] + numpy.zeros((12, HEIGHT, WIDTH, 3))).astype(numpy.uint8)


def ffmpeg(*arguments: str | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True)


def write_mp4(path: Path, frames: numpy.ndarray) -> Path:
    with imageio.get_writer(
        path, format="FFMPEG", mode="I", fps=12, macro_block_size=1, pixelformat="yuv444p", quality=9
    ) as writer:
        for frame in frames:
            writer.append_data(frame)
    return path


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mp4(tmp_path_factory.mktemp("made") / "a.mp4", FRAMES)


@pytest.fixture
def video(made_once: Path, tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").write_bytes(made_once.read_bytes())
    return tmp_path / "a.mp4"


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def image_at(path: Path) -> numpy.ndarray:
    frames = read_last_frames(path, 1)
    assert frames.dtype == torch.uint8 and frames.shape[0] == 1
    return frames[0].numpy()


def error_of(path: Path) -> str:
    """What both ways to the file say, which is the same."""
    with pytest.raises(VisualInputError) as of_facts:
        visual_facts(path)
    with pytest.raises(VisualInputError) as of_frames:
        read_last_frames(path, 1)
    assert str(of_facts.value) == str(of_frames.value)
    assert str(of_facts.value).startswith(str(path))
    return str(of_facts.value)


# Images.


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.PNG", {}, 0),
        ("a.jpg", {"quality": 98, "subsampling": 0}, 12),
        ("a.JpEg", {"quality": 98, "subsampling": 0}, 12),
        ("a.webp", {"lossless": True}, 0),
        ("a.WEBP", {"lossless": True}, 0),
        ("a.bmp", {}, 0),
    ],
)
def test_an_image_of_each_format_is_one_frame(
    tmp_path: Path, name: str, options: dict, tolerance: int
) -> None:
    path = saved(tmp_path / name, Image.fromarray(PICTURE), **options)
    assert visual_facts(path) == VisualFacts(
        num_frames=1, height=HEIGHT, width=WIDTH, fps=None, is_image=True
    )
    assert numpy.abs(image_at(path).astype(int) - PICTURE).max() <= tolerance
    assert torch.equal(read_frames_at(path, [0])[0], torch.from_numpy(image_at(path)))


@pytest.mark.parametrize("name", ["a.mp4", "a.jpg", "a.npy", "a"])
def test_an_image_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, Image.fromarray(PICTURE), format="PNG")
    assert visual_facts(path).is_image
    assert numpy.array_equal(image_at(path), PICTURE)


def test_half_transparent_pixels_lie_on_white_and_are_cut_as_released(tmp_path: Path) -> None:
    colours = [(0, 0, 0, 0), (10, 20, 30, 255), (0, 100, 10, 200), (255, 255, 255, 77)]
    image = Image.fromarray(numpy.array([colours], numpy.uint8))
    for name in ("a.png", "a.webp"):
        found = image_at(
            saved(tmp_path / name, image, **({"lossless": True, "exact": True} if "w" in name else {}))
        )
        # 255 * 55/255 = 55; 100 * 200/255 + 55 = 133.4; 10 * 200/255 + 55 = 62.8
        assert found[0].tolist() == [[255, 255, 255], [10, 20, 30], [55, 133, 62], [255, 255, 255]]


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1), 1)
    image.putpalette([255, 0, 0, 0, 128, 0])
    image.putpixel((1, 0), 0)
    for name in ("a.png", "a.gif"):
        found = image_at(saved(tmp_path / name, image, transparency=0))
        assert found.tolist() == [[[0, 128, 0], [255, 255, 255], [0, 128, 0]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16"])
def test_images_without_colour_get_three_equal_channels(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":  # 16 bits: only the upper byte is kept
        image = Image.fromarray(numpy.array([[0, 255, 256, 32768, 65535]], numpy.uint16))
        wanted = [0, 0, 1, 128, 255]
    elif mode == "1":
        image, wanted = Image.fromarray(numpy.array([[False, True]])), [0, 255]
    else:
        image, wanted = Image.fromarray(numpy.array([[0, 7, 255]], numpy.uint8)).convert(mode), [0, 7, 255]
    found = image_at(saved(tmp_path / "a.png", image))
    assert found.tolist() == [[[value] * 3 for value in wanted]]


def test_the_upper_byte_of_16_bit_colour_is_kept(tmp_path: Path) -> None:
    values = numpy.array([[[0, 0x12FF, 0xFFFF], [0x8000, 0x00FF, 0x0100]]], ">u2")
    raw = tmp_path / "raw.rgb"
    raw.write_bytes(values.tobytes())
    ffmpeg(
        "-f", "rawvideo", "-pix_fmt", "rgb48be", "-s", "2x1", "-i", raw, "-frames:v", "1", tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").read_bytes()[24] == 16
    assert image_at(tmp_path / "a.png").tolist() == [[[0, 0x12, 0xFF], [0x80, 0, 1]]]


def test_a_cmyk_jpeg_has_its_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(PICTURE).convert("CMYK"), quality=98, subsampling=0)
    assert Image.open(path).mode == "CMYK"
    assert numpy.abs(image_at(path).astype(int) - PICTURE).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_photo_is_turned_as_its_exif_data_say(tmp_path: Path, name: str, orientation: int) -> None:
    # What EXIF calls row 0 and column 0, written out: numpy's turns, not Pillow's.
    stored = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.swapaxes(0, 1),
        6: numpy.rot90(PICTURE, 1),
        7: numpy.rot90(PICTURE, 2).swapaxes(0, 1),
        8: numpy.rot90(PICTURE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"lossless": True} if name == "a.webp" else {"quality": 98, "subsampling": 0} if "j" in name else {}
    )
    path = saved(tmp_path / name, Image.fromarray(numpy.ascontiguousarray(stored)), exif=exif, **options)
    facts = visual_facts(path)
    assert (facts.height, facts.width) == (HEIGHT, WIDTH)
    assert numpy.abs(image_at(path).astype(int) - PICTURE).max() <= 12


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_a_moving_image_no_picture_is_taken_for_the_whole(tmp_path: Path, name: str) -> None:
    first, second = (Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    path = saved(tmp_path / name, first, save_all=True, append_images=[second], lossless=True)
    assert "is an animation of 2 pictures. Convert it to an mp4" in error_of(path)


def test_a_phones_jpeg_with_a_second_picture_is_its_first(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    path = tmp_path / "a.jpg"
    first.save(path, "MPO", save_all=True, append_images=[second])
    assert Image.open(path).n_frames == 2
    assert visual_facts(path).num_frames == 1
    assert (image_at(path)[..., 0] > 240).all()


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "BMP")
    damaged = bytearray(content.getvalue())
    damaged[18:26] = struct.pack("<ii", 60_000, 60_000)
    (tmp_path / "a.bmp").write_bytes(damaged)
    assert "too large to be decoded" in error_of(tmp_path / "a.bmp")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_cut_image_is_named(tmp_path: Path, name: str, part: float) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, PICTURE.shape, numpy.uint8)
    path = saved(tmp_path / name, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert "is it complete?" in error_of(path)


def test_a_damaged_image_is_an_image_or_a_sentence(tmp_path: Path) -> None:
    generator = numpy.random.default_rng(0)
    failures = 0
    for name in ("a.png", "a.jpg", "a.webp", "a.gif"):
        path = saved(tmp_path / name, Image.fromarray(PICTURE))
        whole = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(whole)
            for place in generator.integers(12, len(whole), 4):
                damaged[place] = generator.integers(256)
            path.write_bytes(damaged)
            try:
                assert image_at(path).shape[2] == 3
            except VisualInputError as error:
                failures += 1
                assert str(error).startswith(str(path))
    assert failures > 10


def test_an_error_in_a_decoder_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PICTURE))

    def fail(image: Image.Image) -> Image.Image:
        raise KeyError

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert "is an image that cannot be decoded (KeyError)" in error_of(path)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_a_phones_heic_image_is_to_be_converted(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    assert "Convert it to PNG or JPEG" in error_of(tmp_path / "a.jpg")


def test_an_image_is_too_short_for_nine_frames(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PICTURE))
    with pytest.raises(VisualInputError, match=r"a\.png has 1 frame, but 9 are needed"):
        read_last_frames(path, 9)
    with pytest.raises(VisualInputError, match=r"a\.png has 1 frame, but frame 1 is needed"):
        read_frames_at(path, [0, 1])


# Videos.


def test_the_last_frames_of_a_video_come_in_their_order(video: Path) -> None:
    assert visual_facts(video) == VisualFacts(
        num_frames=12, height=HEIGHT, width=WIDTH, fps=12.0, is_image=False
    )
    for count in (1, 9, 12):
        frames = read_last_frames(video, count)
        assert frames.dtype == torch.uint8 and frames.shape == (count, HEIGHT, WIDTH, 3)
        assert (frames.int() - torch.from_numpy(FRAMES[-count:]).int()).abs().max() < 6


def test_a_video_too_short_says_what_it_has_and_what_is_needed(video: Path) -> None:
    with pytest.raises(VisualInputError, match=r"a\.mp4 has 12 frames, but 13 are needed"):
        read_last_frames(video, 13)


def test_only_the_frames_asked_for_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = 0, 0

    class Frame(numpy.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def many(path: Path):
        nonlocal alive, most
        for number in range(200):
            alive += 1
            most = max(most, alive)
            yield numpy.full((2, 2, 3), number, numpy.uint8).view(Frame)

    (tmp_path / "a.mp4").write_bytes(b"something")
    monkeypatch.setattr(visual_input, "read_frames", many)
    assert read_last_frames(tmp_path / "a.mp4", 9)[:, 0, 0, 0].tolist() == [*range(191, 200)]
    assert 9 <= most <= 12


def test_frames_are_chosen_by_number(video: Path) -> None:
    frames = read_frames_at(video, [0, 3, 4, 11])
    assert frames.dtype == torch.uint8 and frames.shape == (4, HEIGHT, WIDTH, 3)
    assert (frames.int() - torch.from_numpy(FRAMES[[0, 3, 4, 11]]).int()).abs().max() < 6


def test_reading_stops_after_the_last_frame_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []

    def endless(path: Path):
        try:
            for number in range(1000):
                events.append(number)
                yield FRAMES[0]
        finally:
            events.append("closed")

    (tmp_path / "a.mp4").write_bytes(b"something")
    monkeypatch.setattr(visual_input, "read_frames", endless)
    assert len(read_frames_at(tmp_path / "a.mp4", [1, 3])) == 2
    assert events == [0, 1, 2, 3, "closed"]


def test_a_frame_beyond_the_end_is_named(video: Path) -> None:
    with pytest.raises(
        VisualInputError, match=r"a\.mp4 has 12 frames, but frame 12 is needed, counted from 0"
    ):
        read_frames_at(video, [0, 12])


@pytest.mark.parametrize("indices", [[], [-1], [3, 3], [4, 2]])
def test_frame_numbers_that_do_not_rise_are_a_mistake_of_the_caller(video: Path, indices: list[int]) -> None:
    with pytest.raises(AssertionError):
        read_frames_at(video, indices)


@pytest.mark.parametrize("name", ["a.MP4", "a.Mov", "a.mkv", "a.webm", "a.avi", "a.png", "a"])
def test_a_video_is_told_by_its_content(video: Path, name: str) -> None:
    path = video.with_name(name)
    if name in ("a.MP4", "a.png", "a"):
        video.rename(path)
    else:
        ffmpeg("-i", video, *(["-c:v", "vp8", "-b:v", "2M"] if name == "a.webm" else ["-q:v", "2"]), path)
    facts = visual_facts(path)
    assert (facts.num_frames, facts.height, facts.width, facts.fps) == (12, HEIGHT, WIDTH, 12)
    assert not facts.is_image
    brightness = read_last_frames(path, 12).float().mean(dim=(1, 2, 3))
    assert (brightness - torch.from_numpy(BRIGHTNESS)).abs().max() < 10


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phones_video_is_upright(tmp_path: Path, degrees: int) -> None:
    straight = write_mp4(tmp_path / "straight.mp4", numpy.stack([PICTURE] * 3))
    path = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", str(degrees), "-i", straight, "-c", "copy", path)
    upright = numpy.rot90(PICTURE, degrees // 90)  # both count against the clock
    facts = visual_facts(path)
    assert (facts.height, facts.width) == upright.shape[:2]
    assert numpy.abs(image_at(path).astype(int) - upright).mean() < 8


def test_frames_at_uneven_times_are_neither_doubled_nor_dropped(video: Path) -> None:
    uneven = video.with_name("uneven.mp4")
    times = r"setpts=if(gt(N\,7)\,N*1.7\,N)/12/TB"
    ffmpeg("-i", video, "-vf", times, "-fps_mode", "passthrough", "-q:v", "2", uneven)
    assert visual_facts(uneven).num_frames == 12
    brightness = read_frames_at(uneven, [*range(12)]).float().mean(dim=(1, 2, 3))
    assert (brightness - torch.from_numpy(BRIGHTNESS)).abs().max() < 6


def test_sound_is_passed_over(video: Path) -> None:
    path = video.with_name("sound.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=3", "-i", video, "-c:v", "copy", path)
    assert visual_facts(path).num_frames == len(read_last_frames(path, 12)) == 12


def test_a_file_with_nothing_but_sound_says_so(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", tmp_path / "a.mp4")
    assert "has no picture, only sound" in error_of(tmp_path / "a.mp4")


def test_an_array_is_a_video_too(tmp_path: Path) -> None:
    numpy.save(tmp_path / "a.npy", FRAMES)
    facts = visual_facts(tmp_path / "a.npy")
    assert facts == VisualFacts(num_frames=12, height=HEIGHT, width=WIDTH, fps=24.0, is_image=False)
    assert numpy.array_equal(read_last_frames(tmp_path / "a.npy", 9), FRAMES[-9:])
    assert numpy.array_equal(read_frames_at(tmp_path / "a.npy", [2, 5]), FRAMES[[2, 5]])
    numpy.save(tmp_path / "a.npy", FRAMES.astype(numpy.float32))
    assert "holds float32" in error_of(tmp_path / "a.npy")


@pytest.mark.parametrize("kept", [10, 1000])
def test_a_cut_mp4_is_named(video: Path, kept: int) -> None:
    video.write_bytes(video.read_bytes()[:kept])
    assert "cannot be decoded" in error_of(video)


# What is neither.


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.txt", "a"])
def test_a_text_is_neither_image_nor_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("A robot walks through a forest of birches.\n" * 200)
    assert error_of(tmp_path / name).endswith("Pass a PNG, JPEG or WEBP image or an mp4 video.")


def test_a_missing_file_an_empty_one_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty.mp4").touch()
    assert "does not exist" in error_of(tmp_path / "missing.mp4")
    assert "does not exist" in error_of(tmp_path / "missing.png")
    assert "is empty, 0 bytes" in error_of(tmp_path / "empty.png")
    assert "is empty, 0 bytes" in error_of(tmp_path / "empty.mp4")
    assert "is a folder" in error_of(tmp_path)
    assert "no regular file" in error_of(Path("/dev/null"))
    assert "File name too long" in error_of(tmp_path / ("a" * 300))


def test_a_file_that_may_not_be_opened_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PICTURE))

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be opened: Permission denied" in error_of(path)


def test_without_ffmpeg_images_are_read_and_videos_are_refused(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert error_of(video).endswith("in an .npy file.")
    path = saved(video.with_name("a.png"), Image.fromarray(PICTURE))
    assert numpy.array_equal(image_at(path), PICTURE)


# Pixel values.


def test_without_a_resize_values_are_exactly_those_of_the_formula() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    pixels = to_pixels(frames, height=16, width=16)
    assert pixels.dtype == torch.float32 and pixels.shape == (1, 3, 2, 16, 16)
    assert pixels[0, 1, 1].flatten().tolist() == [(value - 128) / 128 for value in range(256)]
    assert torch.equal(pixels, pixels.bfloat16().float())  # so the released rounding before a resize is none


def test_channels_and_frames_keep_their_places() -> None:
    frames = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    pixels = to_pixels(frames, height=4, width=5)
    for frame, row, column, colour in ((0, 1, 2, 0), (2, 3, 4, 1), (1, 0, 3, 2)):
        wanted = frames[frame, row, column, colour].item() / 128 - 1
        assert pixels[0, colour, frame, row, column] == wanted


@pytest.mark.parametrize(("height", "width"), [(24, 32), (90, 160), (24, 160), (57, 32)])
def test_a_resize_is_pillows_antialiased_bicubic_straight_to_the_size(height: int, width: int) -> None:
    frames = torch.from_numpy(numpy.random.default_rng(0).integers(0, 256, (2, 57, 101, 3), numpy.uint8))
    pixels = to_pixels(frames, height=height, width=width)
    assert pixels.shape == (1, 3, 2, height, width)
    for frame in range(2):
        for colour in range(3):
            plane = Image.fromarray(frames[frame, :, :, colour].float().numpy() / 128 - 1)
            wanted = numpy.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
            assert numpy.abs(pixels[0, colour, frame].numpy() - wanted).max() < 1e-4


def test_overshoot_beside_an_edge_is_kept_as_released() -> None:
    frames = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    frames[:, :, 4:] = 255
    pixels = to_pixels(frames, height=8, width=40)
    assert -1.2 < pixels.min() < -1.01
    assert 127 / 128 + 0.01 < pixels.max() < 1.2


def test_pixels_are_of_uint8_frames_only() -> None:
    for wrong in (torch.zeros(1, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(AssertionError):
            to_pixels(wrong, height=8, width=8)


def test_unit_pixels_reach_from_minus_one_to_one_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    pixels = unit_pixels(frames)
    assert pixels.dtype == torch.float32 and pixels.shape == (1, 3, 2, 16, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(((pixels + 1) * 127.5).round()[0].permute(1, 2, 3, 0), frames.float())
    torch.testing.assert_close(pixels, -pixels.flip(3, 4))  # black is as far from 0 as white


def test_unit_pixels_keep_channels_and_frames_in_their_places() -> None:
    frames = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    pixels = unit_pixels(frames)
    for frame, row, column, colour in ((0, 1, 2, 0), (2, 3, 4, 1), (1, 0, 3, 2)):
        assert pixels[0, colour, frame, row, column] == pytest.approx(
            frames[frame, row, column, colour].item() / 127.5 - 1, abs=1e-6
        )


# Covering a size.

NOISY = torch.from_numpy(numpy.random.default_rng(0).integers(0, 256, (2, 57, 101, 3), numpy.uint8))


@pytest.mark.parametrize(
    ("size", "covering", "corner"),
    [
        ((24, 32), (24, 43), (0, 6)),  # 24/57 of 101 columns are 42.5; round(5.5) is 6
        ((90, 160), (91, 160), (0, 0)),  # 160/101 of 57 rows are 90.3; round(0.5) is 0
        ((24, 160), (91, 160), (34, 0)),
        ((57, 32), (57, 101), (0, 34)),
        ((100, 20), (100, 178), (0, 79)),
    ],
)
def test_the_centre_of_pillows_antialiased_bilinear_is_kept_and_cut_to_levels(
    size: tuple[int, int], covering: tuple[int, int], corner: tuple[int, int]
) -> None:
    found = cropped(NOISY, height=size[0], width=size[1])
    assert found.dtype == torch.uint8 and found.shape == (2, *size, 3)
    (height, width), (top, left) = size, corner
    for frame in range(2):
        for colour in range(3):
            plane = Image.fromarray(NOISY[frame, :, :, colour].float().numpy())
            whole = numpy.asarray(plane.resize(covering[::-1], Image.Resampling.BILINEAR))
            cut_off = whole[top : top + height, left : left + width] - found[frame, :, :, colour].numpy()
            assert cut_off.min() > -1e-2 and cut_off.max() < 1 + 1e-2
            if covering != (57, 101):
                assert 0.4 < cut_off.mean() < 0.6  # rounded, it would be 0


def test_a_frame_that_has_the_size_stays_as_it_is() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    assert torch.equal(cropped(frames, height=16, width=16), frames)


@pytest.mark.parametrize(("more", "first"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)])
def test_of_an_odd_margin_the_half_goes_to_the_even_side_as_released(more: int, first: int) -> None:
    row = torch.arange(8 + more, dtype=torch.uint8)
    wide = row.view(1, 1, -1, 1).expand(1, 8, -1, 3)
    assert cropped(wide, height=8, width=8)[0, 3, :, 1].tolist() == list(range(first, first + 8))
    tall = wide.transpose(1, 2)
    assert cropped(tall, height=8, width=8)[0, :, 3, 1].tolist() == list(range(first, first + 8))


def test_nothing_is_stretched() -> None:
    square = torch.zeros(1, 60, 120, 3, dtype=torch.uint8)
    square[:, 20:40, 50:70] = 255
    found = cropped(square, height=30, width=30)[0, :, :, 0] > 127
    assert found.sum(0).max() == found.sum(1).max() == 10


def test_every_size_is_covered() -> None:
    for rows, columns, height, width in itertools.product((1, 3, 7, 49), (1, 6, 53), (1, 5, 49), (2, 11, 48)):
        frames = torch.full((1, rows, columns, 3), 200, dtype=torch.uint8)
        found = cropped(frames, height=height, width=width)
        assert found.shape == (1, height, width, 3)
        assert found.min() >= 199 and found.max() <= 200  # cutting may lose a level, as released


def test_only_uint8_frames_are_cropped_and_made_pixels() -> None:
    for wrong in (torch.zeros(1, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(AssertionError):
            cropped(wrong, height=8, width=8)
        with pytest.raises(AssertionError):
            unit_pixels(wrong)


def test_a_frame_so_long_that_covering_would_fill_the_memory_is_refused() -> None:
    thin = torch.zeros(1, 2000, 1, 3, dtype=torch.uint8)
    with pytest.raises(VisualInputError, match=r"1 x 2000 pixels is too long .* 1,280 x 2,560,000"):
        cropped(thin, height=704, width=1280)
    assert cropped(thin, height=16, width=16).shape == (1, 16, 16, 3)


# Covering a size without making levels.


@pytest.mark.parametrize("size", [(24, 32), (90, 160), (57, 32), (57, 101)])
def test_pixels_of_the_centre_are_those_that_would_be_cut_to_levels(size: tuple[int, int]) -> None:
    height, width = size
    pixels = cropped_pixels(NOISY, height=height, width=width)
    assert pixels.shape == (1, 3, 2, height, width) and pixels.dtype == torch.float32
    levels = ((pixels[0].permute(1, 2, 3, 0) + 1) / 2 * 255).clamp(0, 255)
    cut_off = levels - cropped(NOISY, height=height, width=width)
    assert cut_off.min() > -1e-2 and cut_off.max() < 1 + 1e-2


def test_pixels_are_the_antialiased_resize_of_the_scaled_frames_and_never_rounded() -> None:
    scaled = NOISY.permute(0, 3, 1, 2).float() / 255 * 2 - 1  # the released order: scaled, then resized
    whole = torch.nn.functional.interpolate(
        scaled, size=(24, 43), mode="bilinear", align_corners=False, antialias=True
    )
    pixels = cropped_pixels(NOISY, height=24, width=32)
    torch.testing.assert_close(pixels[0].transpose(0, 1), whole[:, :, :, 6:38], rtol=0, atol=1e-6)
    levels = (pixels + 1) / 2 * 255
    assert (levels - levels.round()).abs().mean() > 0.2


def test_pixels_of_frames_of_the_size_are_the_exact_levels_from_minus_one_to_one() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    pixels = cropped_pixels(frames, height=16, width=16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    torch.testing.assert_close(pixels, unit_pixels(frames), rtol=0, atol=1e-6)


def test_pixels_of_what_cannot_be_covered_are_refused() -> None:
    thin = torch.zeros(1, 2000, 1, 3, dtype=torch.uint8)
    with pytest.raises(VisualInputError, match=r"1 x 2000 pixels is too long"):
        cropped_pixels(thin, height=640, width=1024)
    for wrong in (torch.zeros(1, 8, 8, 3), torch.zeros(8, 8, 3, dtype=torch.uint8)):
        with pytest.raises(AssertionError):
            cropped_pixels(wrong, height=8, width=8)
