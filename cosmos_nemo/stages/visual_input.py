"""The image or video that a world starts from: its facts, its frames, and their pixel values.

T frames, H W rows and columns, C colours; frames are uint8 0..255. A file's content tells what it is, not its
name. Where the released code misreads or fails, this does not: images are turned upright as their EXIF data
say, grayscale, palette and CMYK images are read, and white under half-transparent pixels stays white.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from cosmos_nemo.stages.video_reading import NoFfmpegError, VideoError, read_frames, video_facts

if TYPE_CHECKING:
    from PIL import Image

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Only these are tried: Pillow's others reach from fonts to programs (PostScript)."""
_ANIMATED = ("GIF", "WEBP", "PNG")
"""Where several pictures are frames; a phone's JPEG may hold others beside the one."""
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
_MOST_COVERED = 2**27
"""Pixels of a frame that is resized before it is cut; in float32 they take 1.6 GB."""
_WAY_OUT = "Pass a PNG, JPEG or WEBP image or an mp4 video."


class VisualInputError(ValueError):
    """An image or video that cannot be read, or has too few frames."""


@dataclass(frozen=True, kw_only=True)
class VisualFacts:
    """What there is to know of an image or video before reading it; the sides are of upright frames."""

    num_frames: int
    height: int
    width: int
    fps: float | None
    """None for an image."""
    is_image: bool


def visual_facts(path: Path) -> VisualFacts:
    """Decodes the file from end to end, so that what is damaged shows here. VisualInputError if it is."""
    image_HWC = _read_image(path)
    if image_HWC is not None:
        height, width, _ = image_HWC.shape
        return VisualFacts(num_frames=1, height=height, width=width, fps=None, is_image=True)
    with _said_of(path):
        facts = video_facts(path)
    return VisualFacts(
        num_frames=facts.num_frames, height=facts.height, width=facts.width, fps=facts.fps, is_image=False
    )


def read_last_frames(path: Path, num_frames: int) -> Tensor:
    """The last `num_frames` frames [T, H, W, 3] in their order; of an image its one, or first.

    A video is read once; no more than these frames are held. VisualInputError if it has fewer or is damaged.
    """
    assert num_frames >= 1, num_frames
    last: deque[numpy.ndarray] = deque(maxlen=num_frames)
    with closing(_frames(path)) as frames:
        last.extend(frames)
    if len(last) < num_frames:
        raise VisualInputError(
            f"{path} has {_counted(len(last))}, but {num_frames} are needed. "
            "Pass a video that has as many, or ask for fewer input frames."
        )
    return torch.from_numpy(numpy.stack(last))


def read_frames_at(path: Path, indices: Sequence[int]) -> Tensor:
    """The frames [N, H, W, 3] with these numbers, from 0 and rising; an image has number 0.

    A video is read once and only to the last of them. VisualInputError if it ends before or is damaged.
    """
    assert indices and indices[0] >= 0, indices
    assert all(before < after for before, after in pairwise(indices)), indices
    wanted, found, num_frames = set(indices), [], 0
    with closing(_frames(path)) as frames:
        for frame in frames:
            if num_frames in wanted:
                found.append(frame)
            num_frames += 1
            if num_frames > indices[-1]:
                return torch.from_numpy(numpy.stack(found))
    raise VisualInputError(
        f"{path} has {_counted(num_frames)}, but frame {indices[-1]} is needed, counted from 0. "
        "Pass a longer video, or ask for earlier frames."
    )


def to_pixels(frames_THWC: Tensor, *, height: int, width: int) -> Tensor:
    """uint8 frames as Cosmos 1.0's video tokenizer takes them: float32 [1, 3, T, height, width], -1..127/128.

    As the released read_video_or_image_into_frames_BCTHW: x / 128 - 1, then bicubic, antialiased, straight to
    the size, whatever the aspect ratio. Overshoot beside sharp edges is not clamped there, nor here: values
    may lie a little outside the range. The released result is this one rounded to bfloat16: its bfloat16
    before the resize rounds nothing away, 8 bits being enough for x - 128.
    """
    assert frames_THWC.dtype == torch.uint8 and frames_THWC.ndim == 4 and frames_THWC.shape[3] == 3
    pixels = torch.empty(
        1, 3, len(frames_THWC), height, width, dtype=torch.float32, device=frames_THWC.device
    )
    for number, frame_HWC in enumerate(frames_THWC):  # one at a time: large frames are large in float32
        frame_1CHW = (frame_HWC.permute(2, 0, 1).float() / 128 - 1)[None]
        if frame_1CHW.shape[2:] != (height, width):
            frame_1CHW = functional.interpolate(
                frame_1CHW, size=(height, width), mode="bicubic", align_corners=False, antialias=True
            )
        pixels[:, :, number] = frame_1CHW
    return pixels


def resized(frames_THWC: Tensor, *, height: int, width: int) -> Tensor:
    """The frames uint8 0..255 in another size, bicubic and antialiased; the same tensor if they have it."""
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    result = frames_THWC.new_empty(len(frames_THWC), height, width, 3)
    for number, frame_HWC in enumerate(frames_THWC):
        frame_1CHW = frame_HWC.permute(2, 0, 1)[None].float()
        frame_1CHW = functional.interpolate(
            frame_1CHW, size=(height, width), mode="bicubic", align_corners=False, antialias=True
        )
        result[number] = frame_1CHW[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8)
    return result


def cropped(frames_THWC: Tensor, *, height: int, width: int) -> Tensor:
    """The frames uint8 0..255, resized as little as covers the size, and of that the centre.

    As Cosmos-Predict2's scripts prepare input frames (spec/predict2-video2world.md, 4.5): bilinear and
    antialiased on 0..1, then cut, not rounded, to levels. VisualInputError for frames so long that most of
    what they would be resized to is cut away.
    """
    result = frames_THWC.new_empty(len(frames_THWC), height, width, 3)
    for number, part_CHW in enumerate(_covering(frames_THWC, height=height, width=width)):
        result[number] = (part_CHW * 255).to(torch.uint8).permute(1, 2, 0)
    return result


def cropped_pixels(frames_THWC: Tensor, *, height: int, width: int) -> Tensor:
    """uint8 frames as the discrete video tokenizer takes them: float32 [1, 3, T, height, width], -1..1.

    As the released resize_input of the autoregressive scripts (spec/predict1-autoregressive.md, 4.1): the
    centre of what `cropped` resizes to, but never made levels in between, so that no precision is lost; white
    is 1. VisualInputError as there. The scripts then repeat the last frame until the clip has 33, of which
    the causal tokenizer makes nothing for the frames that were given (see DiscreteTokenizer).
    """
    pixels = torch.empty(
        1, 3, len(frames_THWC), height, width, dtype=torch.float32, device=frames_THWC.device
    )
    for number, part_CHW in enumerate(_covering(frames_THWC, height=height, width=width)):
        pixels[0, :, number] = part_CHW * 2 - 1
    return pixels


def _covering(frames_THWC: Tensor, *, height: int, width: int) -> Iterator[Tensor]:
    """Of each frame float32 0..1 [3, height, width]: resized to cover the size, of that the centre."""
    assert frames_THWC.dtype == torch.uint8 and frames_THWC.ndim == 4 and frames_THWC.shape[3] == 3
    _, rows, columns, _ = frames_THWC.shape
    scale = max(width / columns, height / rows)
    covering = (ceil(scale * rows), ceil(scale * columns))
    if covering[0] * covering[1] > _MOST_COVERED:
        raise VisualInputError(
            f"A frame of {columns} x {rows} pixels is too long for its width: to cover {width} x {height} it "
            f"would be enlarged to {covering[1]:,} x {covering[0]:,}. Crop it before."
        )
    top, left = round((covering[0] - height) / 2), round((covering[1] - width) / 2)
    for frame_HWC in frames_THWC:  # one at a time: large frames are large in float32
        frame_1CHW = frame_HWC.permute(2, 0, 1)[None].float() / 255
        if frame_1CHW.shape[2:] != covering:
            frame_1CHW = functional.interpolate(
                frame_1CHW, size=covering, mode="bilinear", align_corners=False, antialias=True
            )
        yield frame_1CHW[0, :, top : top + height, left : left + width]


def unit_pixels(frames_THWC: Tensor) -> Tensor:
    """uint8 frames as a video tokenizer takes them: float32 [1, 3, T, H, W], -1..1, in the size they have.

    x / 127.5 - 1, the inverse of how decoded frames become uint8, and Cosmos-Predict2's way to make pixels
    (the released one rounds them to bfloat16). Cosmos-Predict1's, `to_pixels`, divides by 128: there white
    is 127/128.
    """
    assert frames_THWC.dtype == torch.uint8 and frames_THWC.ndim == 4 and frames_THWC.shape[3] == 3
    return (frames_THWC.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]


def _counted(num_frames: int) -> str:
    return f"{num_frames} frame{'s' * (num_frames != 1)}"


def _frames(path: Path) -> Generator[numpy.ndarray, None, None]:
    image_HWC = _read_image(path)
    if image_HWC is not None:
        yield image_HWC
        return
    with _said_of(path):
        yield from read_frames(path)


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Turns what the reader of videos says of a file that is no image into what to do about it."""
    try:
        yield
    except VideoError as error:
        if path.suffix.lower() in _IMAGE_SUFFIXES:
            formats = ", ".join(_IMAGE_FORMATS)
            raise VisualInputError(
                f"{path} is no image that can be read ({formats}), nor a video: is it complete? {_WAY_OUT}"
            ) from error
        way_out = "" if isinstance(error, NoFfmpegError) else f" {_WAY_OUT}"
        raise VisualInputError(f"{error}{way_out}") from error


def _read_image(path: Path) -> numpy.ndarray | None:
    """Upright [H, W, 3], or None if the file is no image: then it may be a video."""
    from PIL import Image, UnidentifiedImageError

    _check_file(path)
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            pictures = getattr(image, "n_frames", 1)
            if pictures > 1 and image.format in _ANIMATED:
                raise VisualInputError(
                    f"{path} is an animation of {pictures} pictures. Convert it to an mp4 video, or pass one "
                    "of them."
                )
            return _upright_rgb(image)
    except VisualInputError:
        raise
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise VisualInputError(f"{path} is too large to be decoded ({error}). Make it smaller.") from None
    except Exception as error:  # over damaged files, Pillow raises whatever its decoders happen upon
        reason = str(error) or type(error).__name__
        raise VisualInputError(
            f"{path} is an image that cannot be decoded ({reason}): is it complete?"
        ) from error


def _check_file(path: Path) -> None:
    """What neither Pillow nor ffmpeg would say in a sentence."""
    try:
        facts = path.stat()
        if S_ISDIR(facts.st_mode):
            raise VisualInputError(f"{path} is a folder. Pass an image or a video in it.")
        if not S_ISREG(facts.st_mode):
            raise VisualInputError(f"{path} is no regular file. Copy what comes from it into one.")
        if facts.st_size == 0:
            raise VisualInputError(f"{path} is empty, 0 bytes: was it copied to the end?")
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        raise VisualInputError(f"{path} does not exist.") from None
    except OSError as error:
        raise VisualInputError(f"{path} cannot be opened: {error.strerror or error}.") from None
    if head[4:8] == b"ftyp" and head[8:] in _HEIF_BRANDS:  # ffmpeg may take one tile for the picture
        raise VisualInputError(
            f"{path} is a HEIC or AVIF image, which is not read. Convert it to PNG or JPEG."
        )


def _upright_rgb(image: "Image.Image") -> numpy.ndarray:
    """[H, W, 3] on white. 16 bits become 8 by their upper byte, colour profiles are not applied."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grayscale; older Pillows name it as 32-bit
        gray_HW = (numpy.asarray(image).clip(0, 65535) // 256).astype(numpy.uint8)
        return numpy.repeat(gray_HW[..., None], 3, axis=2)
    if not image.has_transparency_data:
        return numpy.array(image.convert("RGB"))
    pixels_HWC = numpy.asarray(image.convert("RGBA")).astype(numpy.uint16)
    colour_HWC, alpha_HW1 = pixels_HWC[..., :3], pixels_HWC[..., 3:]
    return ((colour_HWC * alpha_HW1 + 255 * (255 - alpha_HW1)) // 255).astype(numpy.uint8)
