"""From a folder of videos to the samples that training reads.

C channels, T frames, H W rows and columns, L text length, D text width; frames are uint8 0..255.
"""

import json
import logging
import math
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cosmos_nemo.catalog import Family, ModelCard, Task
from cosmos_nemo.checkpoint.fingerprint import fingerprint
from cosmos_nemo.request import InterpolationRequest, RequestError, Text2WorldRequest, validate_request
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.text_folder import check_text_folder, text_folder_identity
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer, tokenizer_for
from cosmos_nemo.stages.video_reading import VIDEO_SUFFIXES, VideoFacts, read_frames, video_facts
from cosmos_nemo.training.data import DataError
from cosmos_nemo.training.prepared_folder import (
    INFO,
    LATENT,
    MASK,
    PARTS,
    SAME_FPS,
    SETTINGS_FILE,
    TEXT,
    sample_path,
)

logger = logging.getLogger(__name__)

_MAX_SEED = 2**32 - 1
_INFO_BYTES = 1024

OnSample = Callable[[int, int], None]
"""Called after each sample with the number done and the number to do in this run."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person chose. `prompt` serves the videos that have no .txt beside them."""

    dataset_dir: Path
    output_dir: Path
    height: int
    width: int
    num_frames: int
    prompt: str | None = None
    num_chunks: int = 5
    seed: int = 0
    keep_aspect: bool = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """One video, what it shows, and the first frames of the windows taken from it, in rising order."""

    path: Path
    facts: VideoFacts
    caption: str
    starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One window: `number` is its file name's."""

    number: int
    source: Source
    start: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Everything decided before a weight is read."""

    card: ModelCard
    options: Options
    device: torch.device
    sources: tuple[Source, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks and of what is written: bfloat16 on a GPU, as NeMo's script wrote."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def samples(self) -> list[Sample]:
        windows = [(source, start) for source in self.sources for start in source.starts]
        return [
            Sample(number=number, source=source, start=start)
            for number, (source, start) in enumerate(windows)
        ]

    @property
    def missing(self) -> list[Sample]:
        """Samples of which a file is not in the output folder."""
        folder = self.options.output_dir
        return [s for s in self.samples if not all(sample_path(folder, s.number, p).is_file() for p in PARTS)]

    @property
    def sample_bytes(self) -> int:
        """About what one sample takes on disk."""
        tokenizer, network = self.card.tokenizer, self.card.network
        frames = self.card.latent_frames(self.options.num_frames)
        area = self.options.height * self.options.width // tokenizer.spatial_compression**2
        values = tokenizer.latent_channels * frames * area + network.text_length * (network.text_dim + 1)
        return values * self.dtype.itemsize + _INFO_BYTES

    def settings(self) -> dict[str, Any]:
        """What decides the samples' content, but for the weights of the two encoders."""
        options = self.options
        return {
            "model": self.card.name,
            "height": options.height,
            "width": options.width,
            "num_frames": options.num_frames,
            "num_chunks": options.num_chunks,
            "seed": options.seed,
            "keep_aspect": options.keep_aspect,
            "dtype": str(self.dtype).removeprefix("torch."),
            "videos": [
                {"file": s.path.name, "bytes": s.path.stat().st_size, "caption": s.caption}
                for s in self.sources
            ],
        }


def plan_preparation(options: Options, card: ModelCard, *, device: torch.device) -> Preparation:
    """Reads captions, counts frames, draws the windows; RequestError, DataError or VideoError if it cannot.

    A video shorter than a window is left out with a warning.
    """
    _check_options(options, card)
    paths = _videos(options.dataset_dir)
    captions = [_caption(path, options.prompt) for path in paths]
    _warn_of_idle_prompt(options, paths)
    found = [_source(path, caption, options=options) for path, caption in zip(paths, captions, strict=True)]
    sources = tuple(source for source in found if source.starts)
    if not sources:
        longest = max(source.facts.num_frames for source in found)
        raise DataError(
            f"None of the {len(found)} videos in {options.dataset_dir} has {options.num_frames} frames; the "
            f"longest has {longest}. Pass longer videos or a smaller --num_frames."
        )
    _check_rates(sources)
    _warn_of_rate(sources[0], card)
    return Preparation(card=card, options=options, device=device, sources=sources)


def check_output(folder: Path, settings: Mapping[str, Any]) -> None:
    """DataError if `folder` holds samples that were prepared with other settings."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        _refuse_foreign(folder)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in settings.items() if found[name] != value]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): pass a new --output_path.") from error
    if other:
        raise DataError(
            f"{folder} holds samples prepared with other settings: {_difference(other[0], found, settings)}. "
            "Pass a new --output_path, or the same settings to continue there."
        )


def prepare(
    preparation: Preparation,
    *,
    tokenizer_dir: Path,
    text_encoder_dir: Path,
    on_sample: OnSample | None = None,
) -> int:
    """Makes the samples that are missing; how many it made.

    Each sample appears whole, so an interrupted preparation continues where it stopped. The two encoders are
    never in memory together. DataError, VideoError or CheckpointError for files that cannot be used.
    """
    card, options, device, dtype = (
        preparation.card,
        preparation.options,
        preparation.device,
        preparation.dtype,
    )
    tokenizer = tokenizer_for(
        card.tokenizer, folder=tokenizer_dir, device=device, dtype=dtype, parts=("encoder",)
    )
    tokenizer.check()
    check_text_folder(text_encoder_dir, text_dim=card.network.text_dim)
    settings = preparation.settings() | {
        "tokenizer": fingerprint(tokenizer_dir),
        "text_encoder": text_folder_identity(text_encoder_dir),
    }
    check_output(options.output_dir, settings)
    missing = preparation.missing
    _check_room(options.output_dir, num_bytes=len(missing) * preparation.sample_bytes)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    _write_settings(options.output_dir, settings)
    if not missing:
        return 0
    texts = _encode_captions(preparation, missing, text_encoder_dir)
    with tokenizer:
        for done, (sample, frames_THWC) in enumerate(_clips(missing, preparation), start=1):
            latent_CTHW = _encode_clip(tokenizer, frames_THWC, sample, task=card.task).to(dtype)
            _write_sample(options, sample, latent_CTHW=latent_CTHW, text_LD=texts[sample.source.caption])
            if on_sample is not None:
                on_sample(done, len(missing))
    return len(missing)


def check_is_trainable(card: ModelCard) -> None:
    """RequestError for a task whose training is not built."""
    if card.task in (Task.TEXT2IMAGE, Task.AUTOREGRESSIVE):
        raise RequestError(
            f"{card.name} cannot be trained here yet: what makes images, or draws tokens, has another "
            "training than what makes videos of noise."
        )


def _check_options(options: Options, card: ModelCard) -> None:
    check_is_trainable(card)
    if options.num_chunks < 1:
        raise RequestError(f"--num_chunks {options.num_chunks} must be at least 1.")
    if not 0 <= options.seed <= _MAX_SEED:
        raise RequestError(f"--seed {options.seed} must lie between 0 and {_MAX_SEED}.")
    if card.task is Task.WORLD_INTERPOLATOR:
        _check_pair_options(options, card)
        return
    video, step = card.video, card.tokenizer.temporal_compression
    if not video.min_frames <= options.num_frames <= video.max_frames or options.num_frames % step != 1:
        raise RequestError(
            f"--num_frames {options.num_frames} does not fit {card.name}: it takes {step}k+1 frames from "
            f"{video.min_frames} to {video.max_frames}. Leave it out for {video.num_frames}."
        )
    sizes = Text2WorldRequest(
        prompt="any", height=options.height, width=options.width, num_frames=options.num_frames
    )
    validate_request(sizes, card)


def _check_pair_options(options: Options, card: ModelCard) -> None:
    if options.num_frames != card.video.num_frames:
        raise RequestError(
            f"--num_frames {options.num_frames} does not fit {card.name}: its clips have "
            f"{card.video.num_frames} frames, of which it is told the first and the last. Leave it out."
        )
    sizes = InterpolationRequest(
        prompt="any",
        visual_input=options.dataset_dir,
        height=options.height,
        width=options.width,
        num_frames=options.num_frames,
    )
    validate_request(sizes, card)


def _videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"--dataset_path {folder} is no folder: pass one with .mp4 files.")
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if not paths:
        raise DataError(f"--dataset_path {folder} holds no videos: no file in it ends in .mp4 or .npy.")
    return sorted(paths, key=lambda path: path.name)


def _caption(path: Path, prompt: str | None) -> str:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        if prompt is None or not prompt.strip():
            raise DataError(
                f"{path} has no caption: write one to {beside.name} beside it, or pass --prompt for all "
                'videos without one, e.g. --prompt "A video of sks teal robot."'
            )
        return prompt.strip()
    try:
        caption = beside.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{beside} is no UTF-8: {error}. Save it as UTF-8.") from error
    if not caption:
        raise DataError(f"{beside} is empty: describe the video in it, or remove it and pass --prompt.")
    return caption


def _warn_of_idle_prompt(options: Options, paths: Sequence[Path]) -> None:
    if options.prompt and all(path.with_suffix(".txt").is_file() for path in paths):
        logger.warning("--prompt is not used: every video in %s has a .txt beside it", options.dataset_dir)


def _source(path: Path, caption: str, *, options: Options) -> Source:
    facts = video_facts(path)
    num_starts = facts.num_frames - options.num_frames + 1
    if num_starts < 1:
        logger.warning(
            "%s is left out: it has %d frames, but a window %d", path, facts.num_frames, options.num_frames
        )
    return Source(path=path, facts=facts, caption=caption, starts=_draw(path, num_starts, options=options))


def _draw(path: Path, num_starts: int, *, options: Options) -> tuple[int, ...]:
    """Different windows, as many as asked or as there are; drawn from the seed and the file's name."""
    if num_starts < 1:
        return ()
    random = numpy.random.RandomState(
        [options.seed, zlib.crc32(path.name.encode("utf-8", "surrogateescape"))]
    )
    chosen = random.permutation(num_starts)[: options.num_chunks]
    return tuple(sorted(int(start) for start in chosen))


def _check_rates(sources: Sequence[Source]) -> None:
    first = sources[0]
    for source in sources[1:]:
        if not math.isclose(source.facts.fps, first.facts.fps, rel_tol=SAME_FPS):
            raise DataError(
                f"{source.path} has {source.facts.fps:g} fps, but {first.path.name} {first.facts.fps:g}: a "
                "batch has one frame rate. Convert one of them, or prepare them into folders of their own."
            )


def _warn_of_rate(source: Source, card: ModelCard) -> None:
    """A network of Predict2 is not told how fast its frames follow each other: it learns what it is shown."""
    if card.network.family is Family.PREDICT2 and not math.isclose(
        source.facts.fps, card.video.fps, rel_tol=SAME_FPS
    ):
        logger.warning(
            "%s has %g frames per second, but %s makes %d, and is not told the rate: convert the videos "
            "first, or what moves will move too fast or too slowly",
            *(source.path, source.facts.fps, card.name, card.video.fps),
        )


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"--output_path {folder} is a file: pass a new folder.")
    foreign = [p.name for p in folder.iterdir() if p.name.endswith(tuple(f".{part}" for part in PARTS))]
    if foreign:
        raise DataError(
            f"{folder} holds {sorted(foreign)[0]}, but no {SETTINGS_FILE}: how it was prepared is unknown. "
            "Pass a new --output_path."
        )


def _difference(name: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    if name != "videos":
        return f"{name} {found[name]}, not {settings[name]}"
    old, new = ({video["file"]: video for video in side[name]} for side in (found, settings))
    changed = [file for file in sorted(old.keys() | new.keys()) if old.get(file) != new.get(file)]
    return (
        f"{changed[0] if changed else 'the order of videos'} is new, is gone or has changed, or its caption"
    )


def _check_room(folder: Path, *, num_bytes: int) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise DataError(
            f"{folder} needs {num_bytes / 2**30:.1f} GiB more, but {free / 2**30:.1f} GiB are free there. "
            "Make room, pass another --output_path or a smaller --num_chunks."
        )


def _encode_captions(preparation: Preparation, samples: Sequence[Sample], folder: Path) -> dict[str, Tensor]:
    """Caption -> [L, D] on the CPU, each different caption once; the encoder is gone afterwards."""
    network = preparation.card.network
    encoder = TextEncoder(
        folder=folder,
        text_length=network.text_length,
        text_dim=network.text_dim,
        device=preparation.device,
        dtype=preparation.dtype,
    )
    with encoder:
        return {caption: encoder([caption])[0].cpu() for caption in {s.source.caption: None for s in samples}}


def _clips(samples: Sequence[Sample], preparation: Preparation) -> Iterator[tuple[Sample, Tensor]]:
    """Each sample with its frames [T, H, W, 3]; every video is read once."""
    options = preparation.options
    fit = partial(
        fitted,
        height=options.height,
        width=options.width,
        keep_aspect=options.keep_aspect,
        device=preparation.device,
    )
    for source in preparation.sources:
        by_start = {sample.start: sample for sample in samples if sample.source is source}
        if by_start:
            windows = _windows(source, sorted(by_start), num_frames=options.num_frames, fit=fit)
            for start, frames_THWC in windows:
                yield by_start[start], frames_THWC


def _windows(
    source: Source, starts: Sequence[int], *, num_frames: int, fit: Callable[[numpy.ndarray], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """The windows in rising order; no more than one of them is in memory."""
    waiting, recent = deque(starts), deque[Tensor](maxlen=num_frames)
    with closing(read_frames(source.path)) as frames:
        for number, frame_HWC in enumerate(frames):
            if number < waiting[0]:
                continue
            recent.append(fit(frame_HWC))
            if number == waiting[0] + num_frames - 1:
                yield waiting.popleft(), torch.stack(list(recent))
            if not waiting:
                return
    raise DataError(
        f"{source.path} ended before frame {waiting[0] + num_frames}, though {source.facts.num_frames} were "
        "counted: was it changed meanwhile?"
    )


def fitted(
    frame_HWC: numpy.ndarray, *, height: int, width: int, keep_aspect: bool, device: torch.device
) -> Tensor:
    """The frame in the size wanted, uint8 on the CPU; stretched, or cropped around its centre first."""
    image_HWC = torch.from_numpy(numpy.array(frame_HWC))
    if keep_aspect:
        image_HWC = _cropped(image_HWC, height=height, width=width)
    if tuple(image_HWC.shape[:2]) == (height, width):
        return image_HWC
    image_BCHW = rearrange(image_HWC.to(device), "h w c -> 1 c h w").float()
    image_BCHW = F.interpolate(image_BCHW, (height, width), mode="bicubic", antialias=True)
    return rearrange(image_BCHW.round().clamp(0, 255).to(torch.uint8), "1 c h w -> h w c").cpu()


def _cropped(image_HWC: Tensor, *, height: int, width: int) -> Tensor:
    """The largest part around the centre that has the sides' ratio."""
    rows, columns = image_HWC.shape[:2]
    kept_rows = min(rows, round(columns * height / width))
    kept_columns = min(columns, round(rows * width / height))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return image_HWC[top : top + kept_rows, left : left + kept_columns]


def encode_clips(tokenizer: AnyTokenizer, video_BCTHW: Tensor, *, task: Task) -> Tensor:
    """Normalised latents, on the tokenizer's device, of clips -1..1 as a model for `task` learns them.

    An interpolator's last frame is a latent frame of its own, that of an image (spec/predict1-diffusion.md,
    5.3): ten frames become three.
    """
    if task is not Task.WORLD_INTERPOLATOR:
        return tokenizer.encode(video_BCTHW)
    before_BCTHW = tokenizer.encode(video_BCTHW[:, :, :-1], as_image=False)
    last_BCTHW = tokenizer.encode(video_BCTHW[:, :, -1:], as_image=True)
    return torch.cat([before_BCTHW, last_BCTHW], dim=2)


def _encode_clip(tokenizer: AnyTokenizer, frames_THWC: Tensor, sample: Sample, *, task: Task) -> Tensor:
    video_BCTHW = rearrange(frames_THWC.to(tokenizer.device), "t h w c -> 1 c t h w").float() / 127.5 - 1
    latent_CTHW = encode_clips(tokenizer, video_BCTHW, task=task)[0].cpu()
    if not torch.isfinite(latent_CTHW).all():
        raise DataError(
            f"{sample.source.path}, frames from {sample.start}: the tokenizer made a NaN or an infinity. "
            "Its weights may be damaged."
        )
    return latent_CTHW


def _write_sample(options: Options, sample: Sample, *, latent_CTHW: Tensor, text_LD: Tensor) -> None:
    """info.json comes last: a sample that has one is complete."""
    facts, place = sample.source.facts, partial(sample_path, options.output_dir, sample.number)
    info = {
        "height": facts.height,
        "width": facts.width,
        "fps": facts.fps,
        "num_frames": options.num_frames,
        "video_path": str(sample.source.path),
        "start_frame": sample.start,
        "prompt": sample.source.caption,
    }
    _write_whole(place(LATENT), partial(torch.save, latent_CTHW))
    _write_whole(place(TEXT), partial(torch.save, text_LD.clone()))
    _write_whole(place(MASK), partial(torch.save, _mask(text_LD)))
    _write_whole(place(INFO), partial(_write_json, info))


def _mask(text_LD: Tensor) -> Tensor:
    """1 up to the caption's end, whose rows the text encoder never makes zero, then 0."""
    rows = text_LD.any(dim=1).nonzero()
    mask_L = torch.zeros(len(text_LD), dtype=text_LD.dtype)
    mask_L[: int(rows.max()) + 1 if len(rows) else 0] = 1
    return mask_L


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    if not (folder / SETTINGS_FILE).is_file():
        _write_whole(folder / SETTINGS_FILE, partial(_write_json, settings))


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` write to a temporary name, which becomes `path` when it is complete."""
    partial_path = path.with_name(f".{path.name}.partial")
    try:
        write(partial_path)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
