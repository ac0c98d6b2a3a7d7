"""The stages of frames: video tokenizers and the video guard."""

from cosmos_nemo.catalog import (
    FRAMES_PER_PIECE,
    LOOKS_BACK,
    DiscreteTokenizerShape,
    ModelCard,
    TokenizerShape,
    WanTokenizerShape,
)
from cosmos_nemo.memory.base import BFLOAT16, FLOAT32, GIB, StageMemory
from cosmos_nemo.plan import shares_of

# Measured on an H200 for 88 x 160 latent cells and the released 128 channels: fitted to decodes in pieces of
# 1 to 16 latent frames, and of 1920 x 1056 pixels. The pieces need up to 0.9 GiB less since then; the largest
# frames were not measured again.
_DECODE_GIB = 2.5
_DECODE_GIB_PER_LATENT_FRAME = 0.425
_MIDDLE_GIB_PER_LATENT_FRAME = 0.0925
_COPIES_OF_SCORES = 3.8
"""Of the middle block's spatial attention, which has no kernel that does without the table of scores."""
_WAN_DECODE_GIB, _WAN_DECODE_GIB_PER_LATENT_FRAME = 4.4, 3.25
"""Of Wan2.1's tokenizer at 1280 x 704, in pieces of 1, 2 and 4 latent frames; 768 x 432 takes its share."""
_WAN_AT_ONCE = 4.2
"""Latent frames of 1280 x 704 that a rank decodes beside others: below what a prefetch leaves free."""
_VIDEO_GUARD_WORK = 33 * GIB // 10
"""The face detector's, on 16 frames of 1280 x 704 in float32: the highest peak with guardrails, less the
weights."""
# Estimated from sizes, not measured.
_DISCRETE_WORK = 3 * GIB / (40 * 64)
"""Of the discrete tokenizer, a cell of 16 x 16 pixels: three GiB for nine frames of 1024 x 640."""

_LATENT_CELLS, _CHANNELS = 88 * 160, 128
_TOKENIZER_ENCODER, _TOKENIZER_DECODER = 42_914_864, 62_738_832
_DISCRETE_TOKENIZER = 110_900_000
_WAN_TOKENIZER, _WAN_CHANNELS = 126_892_531, 96
_SIGLIP_VISION, _FACE_DETECTOR = 428_225_600, 27_293_600


def decode_shares(
    shape: TokenizerShape | WanTokenizerShape, latent_THW: tuple[int, int, int], num_ranks: int
) -> list[int]:
    """Latent frames of each of the ranks that decode a video at the same time, one behind the other.

    A single share, of all frames, where they are too few for two ranks, or too many: a rank alone goes
    through them piece by piece, and ranks together cannot. Whether a rank's GPU has the memory for its share
    (share_memory) is asked when the time comes.
    """
    frames, rows, columns = latent_THW
    shares = [share for share in shares_of(frames, num_ranks, least=LOOKS_BACK) if share]
    if isinstance(shape, WanTokenizerShape):
        most = _WAN_AT_ONCE * _LATENT_CELLS * _WAN_CHANNELS / (rows * columns * shape.channels)
    else:
        most = FRAMES_PER_PIECE
    return shares if shares[0] <= most else [frames]


def tokenizer_memory(card: ModelCard, latent_THW: tuple[int, int, int]) -> StageMemory:
    """Decoding by one rank, piece by piece. What looks at images has the encoder's weights too."""
    shape = card.tokenizer
    if isinstance(shape, WanTokenizerShape):
        return StageMemory("tokenizer", _wan_weights(shape), _wan_work(shape, latent_THW, 1))
    return StageMemory("tokenizer", _weights(shape, card.starts_from_frames), _work(shape, latent_THW))


def share_memory(
    shape: TokenizerShape | WanTokenizerShape, latent_THW: tuple[int, int, int], share: int
) -> StageMemory:
    """Decoding by one of several ranks: a share of so many latent frames, at once."""
    if isinstance(shape, WanTokenizerShape):
        return StageMemory("tokenizer", _wan_weights(shape), _wan_work(shape, latent_THW, share))
    return StageMemory("tokenizer", _weights(shape, False), _work(shape, latent_THW))


def _weights(shape: TokenizerShape, encodes: bool) -> int:
    parameters = _TOKENIZER_DECODER + (_TOKENIZER_ENCODER if encodes else 0)
    return int(parameters * (shape.channels / _CHANNELS) ** 2) * BFLOAT16


def _work(shape: TokenizerShape, latent_THW: tuple[int, int, int]) -> int:
    """The pieces after the middle block, or the middle block itself, whichever needs more."""
    frames, rows, columns = latent_THW
    cells = rows * columns / _LATENT_CELLS * shape.channels / _CHANNELS * GIB
    pieces = _DECODE_GIB + _DECODE_GIB_PER_LATENT_FRAME * min(frames, FRAMES_PER_PIECE)
    at_once = frames if frames < 2 else 2 + frames % 2
    scores = _COPIES_OF_SCORES * at_once * (rows * columns) ** 2 * BFLOAT16
    return int(max(cells * pieces, cells * _MIDDLE_GIB_PER_LATENT_FRAME * frames + scores))


def _wan_weights(shape: WanTokenizerShape) -> int:
    return int(_WAN_TOKENIZER * (shape.channels / _WAN_CHANNELS) ** 2) * BFLOAT16


def _wan_work(shape: WanTokenizerShape, latent_THW: tuple[int, int, int], at_once: int) -> int:
    _, rows, columns = latent_THW
    cells = rows * columns / _LATENT_CELLS * shape.channels / _WAN_CHANNELS * GIB
    return int(cells * (_WAN_DECODE_GIB + at_once * _WAN_DECODE_GIB_PER_LATENT_FRAME))


def discrete_tokenizer_memory(shape: DiscreteTokenizerShape, latent_THW: tuple[int, int, int]) -> StageMemory:
    """latent: that of the tokens."""
    _, rows, columns = latent_THW
    channels = shape.channels / _CHANNELS
    weights = int(_DISCRETE_TOKENIZER * channels**2) * BFLOAT16
    return StageMemory("discrete_tokenizer", weights, int(_DISCRETE_WORK * rows * columns * channels))


def video_guard_memory(latent_THW: tuple[int, int, int]) -> StageMemory:
    weights = (_SIGLIP_VISION + _FACE_DETECTOR) * FLOAT32
    _, rows, columns = latent_THW
    return StageMemory("video_guard", weights, _VIDEO_GUARD_WORK * rows * columns // _LATENT_CELLS)
