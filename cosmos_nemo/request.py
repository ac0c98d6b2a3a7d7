"""What a person asks for: a Setup once per process, a request once per video, and the rules both must keep.

Standard library only. Flag names in the messages are those of the doors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from cosmos_nemo.catalog import ModelCard, Task, TokenModel

DEFAULT_NEGATIVE_PROMPT = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, "
    "over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, "
    "underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky "
    "movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, "
    "fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. "
    "Overall, the video is of poor quality."
)
BACKENDS = ("auto", "te", "torch")
PRECISIONS = ("bf16", "fp8")
CFG_PARALLEL = ("auto", "on", "off")
TEXT_ENCODER_DTYPES = ("auto", "bfloat16", "float32")
ROPE_DTYPES = ("float32", "bfloat16")
SAMPLER_NAMES = ("RES", "RES-1euler", "RES-2mid", "EDM")
OFFLOADABLE = ("prompt_upsampler", "guardrails", "text_encoder", "denoise", "tokenizer")
"""In the order in which they are first used; "guardrails" are both guards."""
OFFLOADABLE_OF_TOKENS = ("tokenizer", "token_generation", "diffusion_decoder", "guardrails")
"""Likewise of autoregressive models; "tokenizer" are both video tokenizers."""
VIDEO_SUFFIXES = (".mp4", ".npy")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_CHUNKS = 50
_MAX_PAIRS = 500
"""Whose frames, of 1280 x 704 pixels, take 12 GB of host memory."""
_MAX_SEED = 2**32 - 1
_MAX_STEPS = 100_000


class RequestError(ValueError):
    """A request or flag that cannot be served; the door's exit status is 2."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Chosen once per process. Paths are as the person gave them; None means: look where the card says."""

    model: str
    nemo_checkpoint: Path | None = None
    averaged: bool = False
    """The moving average over the training, of a file that holds it too."""
    assets_dir: Path | None = None
    tokenizer_dir: Path | None = None
    text_encoder_dir: Path | None = None
    upsampler_dir: Path | None = None
    guardrail_dir: Path | None = None
    text_guard_dir: Path | None = None
    t5_cache_dir: Path | None = None
    discrete_tokenizer_dir: Path | None = None
    diffusion_decoder_dir: Path | None = None
    decodes_by_diffusion: bool = True
    """The frames of an autoregressive model are made by its diffusion decoder, not by its tokenizer's."""
    batch_size: int = 1
    """Videos of a batch whose tokens an autoregressive model draws together."""
    upsamples: bool = False
    """Prompts of at most `word_limit` words are made longer by the prompt upsampler."""
    word_limit: int = 250
    guardrails: bool = True
    num_devices: int | None = None
    replicas: int = 1
    """Groups of ranks that make different videos of a batch."""
    cp_size: int | None = None
    tensor_parallel: int | None = 1
    """None: as many of the ranks as the model's heads allow."""
    cfg_parallel: str = "auto"
    backend: str = "auto"
    precision: str = "bf16"
    """Of matrix products and self attention in the diffusion network; fp8 is faster and rounds more."""
    text_encoder_dtype: str = "auto"
    rope_dtype: str = "float32"
    """bfloat16 rounds the rotary angles, by up to 0.3 rad, as NVIDIA's scripts did."""
    offload: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Text2WorldRequest:
    """One video. Sizes in pixels and frames; `guidance` g weighs cond + g * (cond - uncond)."""

    made: ClassVar[str] = "video"
    suffixes: ClassVar[tuple[str, ...]] = VIDEO_SUFFIXES
    """Of `video_path`."""
    prompt: str
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    subject_name: str = ""
    height: int = 704
    width: int = 1280
    num_frames: int = 121
    fps: int = 24
    num_steps: int = 35
    guidance: float = 7.0
    sampler: str = "RES"
    seed: int = 1
    video_path: Path = Path("output.mp4")
    line_number: int | None = None
    """Of the batch file, from 1."""

    @property
    def num_branches(self) -> int:
        """Network calls a step: at g = 0 only the prompt counts, at g = -1 only the negative prompt."""
        return 1 if self.guidance in (0.0, -1.0) else 2


@dataclass(frozen=True, kw_only=True)
class Video2WorldRequest(Text2WorldRequest):
    """A video that goes on from the last frames of an image or a video.

    What is longer than the network makes at once is made in chunks, each of which goes on from the end of the
    one before.
    """

    visual_input: Path
    num_input_frames: int = 1
    """Of the visual input, its last ones: one of the card's `given_frames`."""
    num_overlap_frames: int = 9
    """Of the chunk before, its last ones: likewise."""
    keeps_input_size: bool = False
    """The frames written have the visual input's size; they are made in `height` and `width` all the same."""


@dataclass(frozen=True, kw_only=True)
class InterpolationRequest(Text2WorldRequest):
    """Frames between those of a video; `num_frames` counts those of one clip, with its two given frames."""

    visual_input: Path
    num_input_frames: int = 2
    """That the visual input must have at least."""
    frame_stride: int = 1
    """Frames of the visual input from one given frame to the next."""
    frame_index_start: int = 0
    """The first given frame."""
    num_frame_pairs: int | None = None
    """How many clips; None: as many as the visual input has."""
    draws_noise: bool = False
    """Other noise on the given frames at every step, as released."""

    def given_frames(self, num_frames: int) -> range:
        """Numbers of the given frames in a visual input of `num_frames`; RequestError if it has too few."""
        start, stride, asked = self.frame_index_start, self.frame_stride, self.num_frame_pairs
        if num_frames < self.num_input_frames:
            raise RequestError(
                f"{self.visual_input} has {num_frames} frame(s), fewer than --num_input_frames "
                f"{self.num_input_frames}. Pass a longer video."
            )
        pairs = max((num_frames - 1 - start) // stride, 0)
        if pairs < (asked or 1):
            wanted = "none of them a pair" if asked is None else f"but --num_frame_pairs is {asked}"
            raise RequestError(
                f"{self.visual_input} has {num_frames} frame(s): from --frame_index_start {start} with "
                f"--frame_stride {stride} there are {pairs} pair(s), {wanted}. Pass a longer video, or "
                "change these flags."
            )
        if (asked or pairs) > _MAX_PAIRS:
            raise RequestError(
                f"{self.visual_input} has {pairs} pair(s) of frames, and one run makes {_MAX_PAIRS} clips at "
                "most. Make it in parts, with --frame_index_start and --num_frame_pairs."
            )
        return range(start, start + stride * (asked or pairs) + 1, stride)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveRequest(Text2WorldRequest):
    """A video that goes on token by token from the last frames of an image or a video.

    Its steps, guidance and sampler are the diffusion decoder's; no prompt is read.
    """

    negative_prompt: str = ""
    visual_input: Path
    num_input_frames: int = 9
    """Of the visual input, its last ones: one of the card's `given_frames`."""
    temperature: float = 1.0
    """0 takes the likeliest token every time."""
    top_p: float | None = 0.8
    """The likeliest tokens that together have this probability are drawn from."""
    top_k: int | None = None
    """So many of the likeliest tokens are drawn from, instead of top_p."""


VisualRequest = Video2WorldRequest | InterpolationRequest | AutoregressiveRequest


@dataclass(frozen=True, kw_only=True)
class Text2ImageRequest(Text2WorldRequest):
    """One image. It has no rate: `fps` is the card's, and nothing is made of it."""

    made: ClassVar[str] = "image"
    suffixes: ClassVar[tuple[str, ...]] = IMAGE_SUFFIXES
    negative_prompt: str = ""
    num_frames: int = 1


REQUESTS: Mapping[Task, type[Text2WorldRequest]] = MappingProxyType(
    {
        Task.TEXT2WORLD: Text2WorldRequest,
        Task.VIDEO2WORLD: Video2WorldRequest,
        Task.WORLD_INTERPOLATOR: InterpolationRequest,
        Task.TEXT2IMAGE: Text2ImageRequest,
        Task.AUTOREGRESSIVE: AutoregressiveRequest,
    }
)


def card_values(card: ModelCard) -> dict[str, Any]:
    """Of a request for this model: the fields whose values are the card's, unless a person says otherwise."""
    names = ("num_steps", "guidance", "sampler", "seed")
    found = {name: getattr(card, name) for name in names}
    found |= {name: getattr(card.video, name) for name in ("height", "width", "num_frames", "fps")}
    if card.task is Task.VIDEO2WORLD:
        found |= {"num_overlap_frames": max(card.video.given_frames)}
    if card.tokens is not None:
        found |= {"temperature": card.tokens.temperature, "top_p": card.tokens.top_p}
    return found


def validate_setup(setup: Setup) -> None:
    """RequestError for a value that no machine could serve."""
    _one_of("--backend", setup.backend, BACKENDS)
    _one_of("--precision", setup.precision, PRECISIONS)
    _one_of("--cfg_parallel", setup.cfg_parallel, CFG_PARALLEL)
    _one_of("--text_encoder_dtype", setup.text_encoder_dtype, TEXT_ENCODER_DTYPES)
    if setup.t5_cache_dir is not None and setup.text_encoder_dir is not None:
        raise RequestError("--t5_cache_dir has no effect beside --text_encoder_dir. Pass one of them.")
    _one_of("--rope_dtype", setup.rope_dtype, ROPE_DTYPES)
    for stage in sorted(setup.offload):
        _one_of("--offload", stage, tuple(dict.fromkeys((*OFFLOADABLE, *OFFLOADABLE_OF_TOKENS))))
    if setup.num_devices is not None:
        _at_least("--num_devices", setup.num_devices, 1)
    _at_least("--replicas", setup.replicas, 1)
    _at_least("--batch_size", setup.batch_size, 1)
    _at_least("--word_limit_to_skip_upsampler", setup.word_limit, 0)


def validate_request(request: Text2WorldRequest, card: ModelCard, *, prompt_is_made: bool = False) -> None:
    """RequestError, naming the flag, the value and the way out, unless `card` can make this video.

    prompt_is_made: an upsampler describes the visual input, and no prompt is needed.
    """
    if not (request.prompt.strip() or prompt_is_made or isinstance(request, AutoregressiveRequest)):
        raise RequestError(f"--prompt is empty. Describe the {request.made} to make.")
    for flag, text in (
        ("--prompt", request.prompt),
        ("--negative_prompt", request.negative_prompt),
        ("--subject_name", request.subject_name),
    ):
        _unicode(flag, text)
    if card.tokens is not None:
        _size_of_tokens(request, card, card.tokens)
    _size("--height", request.height, card, card.network.max_latent_height)
    _size("--width", request.width, card, card.network.max_latent_width)
    _frames(request, card)
    _at_least("--fps", request.fps, 1)
    _at_least("--num_steps", request.num_steps, 1)
    if request.num_steps > _MAX_STEPS:
        raise RequestError(f"--num_steps {request.num_steps} must be at most {_MAX_STEPS}.")
    if not math.isfinite(request.guidance):
        raise RequestError(f"--guidance {request.guidance} is no number. 7 is a good start.")
    _one_of("--sampler", request.sampler, SAMPLER_NAMES)
    if not 0 <= request.seed <= _MAX_SEED:
        raise RequestError(f"--seed {request.seed} must lie between 0 and {_MAX_SEED}.")
    if isinstance(request, Video2WorldRequest):
        _given_frames("--num_input_frames", request.num_input_frames, request, card)
        _given_frames("--num_overlap_frames", request.num_overlap_frames, request, card)
    if isinstance(request, InterpolationRequest):
        _interpolation(request)
    if isinstance(request, AutoregressiveRequest) and request.num_input_frames not in card.video.given_frames:
        ways = " or ".join(map(str, card.video.given_frames))
        raise RequestError(f"--num_input_frames {request.num_input_frames} must be {ways} for {card.name}.")
    if request.video_path.suffix.lower() not in request.suffixes:
        raise RequestError(
            f"--video_save_path {request.video_path} must end in {' or '.join(request.suffixes)}, "
            f"e.g. {request.video_path / (request.made + request.suffixes[0])}."
        )


def latent_shape(request: Text2WorldRequest, card: ModelCard) -> tuple[int, int, int, int, int]:
    """B, C, T, H, W of the latent of one video, or of one clip of an interpolation."""
    tokenizer, frames = card.tokenizer, card.latent_frames(request.num_frames)
    side = tokenizer.spatial_compression
    return 1, tokenizer.latent_channels, frames, request.height // side, request.width // side


def _size_of_tokens(request: Text2WorldRequest, card: ModelCard, tokens: TokenModel) -> None:
    """An autoregressive model makes videos of one size and length."""
    frames, rows, columns = tokens.network.latent_THW
    side = tokens.tokenizer.spatial_compression
    length = (frames - 1) * tokens.tokenizer.temporal_compression + 1
    if (request.num_frames, request.height, request.width) != (length, rows * side, columns * side):
        raise RequestError(
            f"{card.name}: its card.json says videos of {request.num_frames} frames of {request.width} x "
            f"{request.height}, but its tokens are those of {length} frames of {columns * side} x "
            f"{rows * side}."
        )


def _unicode(flag: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{flag} {text!r} holds bytes that are no UTF-8. Write it in UTF-8.") from None


def _size(flag: str, value: int, card: ModelCard, max_latent: int) -> None:
    multiple = card.video.size_multiple
    largest = max_latent * card.tokenizer.spatial_compression
    if value < multiple or value % multiple or value > largest:
        nearest = min(max(round(value / multiple), 1) * multiple, largest)
        raise RequestError(
            f"{flag} {value} does not fit {card.name}: it makes multiples of {multiple} up to {largest}. "
            f"Pass {nearest}."
        )


def _frames(request: Text2WorldRequest, card: ModelCard) -> None:
    video, step, value = card.video, card.tokenizer.temporal_compression, request.num_frames
    own_frames = {video.num_frames, video.min_frames, video.max_frames}
    if not isinstance(request, InterpolationRequest) and any(one % step != 1 for one in own_frames):
        raise RequestError(f"{card.name}: its card.json must give {step}k+1 frames, and gives {own_frames}.")
    if isinstance(request, InterpolationRequest):
        if value != video.num_frames:
            raise RequestError(
                f"--num_video_frames {value} does not fit {card.name}: its clips have {video.num_frames} "
                f"frames, the two given ones among them. Pass {video.num_frames}."
            )
        return
    chunks = _MAX_CHUNKS if isinstance(request, Video2WorldRequest) else 1
    most = chunks * (video.max_frames - 1) + 1
    if video.min_frames <= value <= most and value % step == 1:
        return
    below = min(max((value - 1) // step * step + 1, video.min_frames), most)
    above = min(below + step, most)
    ways = str(below) if above == below else f"{below} or {above}"
    raise RequestError(
        f"--num_video_frames {value} does not fit {card.name}: it makes {step}k+1 frames from "
        f"{video.min_frames} to {most}. Pass {ways}."
    )


def _given_frames(flag: str, value: int, request: Video2WorldRequest, card: ModelCard) -> None:
    if value not in card.video.given_frames:
        ways = " or ".join(map(str, card.video.given_frames))
        raise RequestError(f"{flag} {value} must be {ways} for {card.name}.")
    is_one_chunk = request.num_frames <= card.video.max_frames
    if is_one_chunk and flag == "--num_overlap_frames":
        return
    at_once = card.video.at_once(request.num_frames)
    if value >= at_once:
        raise RequestError(f"{flag} {value} leaves nothing of {at_once} frames to make. Pass 1.")


def _interpolation(request: InterpolationRequest) -> None:
    _at_least("--num_input_frames", request.num_input_frames, 1)
    _at_least("--frame_stride", request.frame_stride, 1)
    _at_least("--frame_index_start", request.frame_index_start, 0)
    if request.num_frame_pairs is not None:
        _at_least("--num_frame_pairs", request.num_frame_pairs, 1)


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise RequestError(f"{flag} {value} must be at least {least}.")


def _one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RequestError(f"{flag} {value} is unknown. Pass one of {', '.join(choices)}.")
