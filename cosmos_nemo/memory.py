"""What making one video will need of GPU 0 and of the host, told before anything is allocated.

Weights are counted from the card's sizes, in bfloat16 as on a GPU. Work is what a stage needs beside its
weights; the constants below say which of it was measured and which is estimated from sizes. GPU 0 is
rank 0's, which has the text stages, the tokenizer and the guards that the other ranks lack; the host's memory
is what all ranks together park.
Memory is in bytes, heights and widths in pixels of the video.
"""

from dataclasses import dataclass, replace
from itertools import accumulate

from cosmos_nemo.catalog import (
    DiTShape,
    Family,
    LanguageShape,
    ModelCard,
    Task,
    TokenModel,
    TokenShape,
    VisionShape,
    WanTokenizerShape,
)
from cosmos_nemo.plan import Plan

GIB = 2**30
_BFLOAT16, _FLOAT32 = 2, 4

# Measured on an H200 with the 7B at 121 frames of 1280 x 704 (docs/performance.md): values alive
# at once for each token of a rank, in units of the network's width.
_WIDTHS = 12.6
_WIDTHS_TO_EXCHANGE = 2.5
"""On top where context parallel ranks exchange tokens and heads."""
# Measured there too, for 88 x 160 latent cells and the released 128 channels: fitted to decodes in pieces of
# 1 to 16 latent frames, and of 1920 x 1056 pixels.
_DECODE_GIB = 2.5
_DECODE_GIB_PER_LATENT_FRAME = 0.425
_MIDDLE_GIB_PER_LATENT_FRAME = 0.0925
_COPIES_OF_SCORES = 3.8
"""Of the middle block's spatial attention, which has no kernel that does without the table of scores."""
# Measured there with guardrails and upsampler: the highest of these stages' own peaks less their weights.
_LANGUAGE_WORK = GIB // 4
"""Keys, values, logits and activations of a language model with at most a thousand tokens: 0.2 GiB of the
upsampler, 0.1 of Llama Guard."""
_VIDEO_GUARD_WORK = 33 * GIB // 10
"""The face detector's, on 16 frames of 1280 x 704 in float32."""
_WAN_DECODE = 97 * GIB // 10
"""Of Wan2.1's tokenizer at 1280 x 704, a latent frame after the other; 768 x 432 takes its share."""
# Estimated from sizes, not measured.
_IMAGE_WORK = GIB // 5
"""The vision tower's, on an image of 1024 x 1024 pixels; with one of 1280 x 704 the upsampler's measured
peak is 0.2 GiB below the prediction."""
_DISCRETE_WORK = 3 * GIB / (40 * 64)
"""Of the discrete tokenizer, a cell of 16 x 16 pixels: three GiB for nine frames of 1024 x 640."""
_REFINER_WORK = GIB
"""Keys, values and activations of the prompt refiner with up to 1,280 tokens of a picture."""
_BYTES_TO_DRAW = 64
"""For each logit on top of itself: its place in the order, and float64 probabilities and their sums."""
_WIDTHS_SPLIT_BY_TENSOR_PARALLEL = 8.0
"""Of _WIDTHS: the four-fold width of the MLP, before and after its activation."""
DEVICE_OVERHEAD = 3 * GIB // 2
"""Of a GPU's memory, what tensors never get: CUDA's context, libraries, holes between allocations."""

_LATENT_CELLS, _CHANNELS = 88 * 160, 128
_FRAMES_PER_PIECE = 8
_TOKENIZER_ENCODER, _TOKENIZER_DECODER = 42_914_864, 62_738_832
_COLORS = 3
_DISCRETE_TOKENIZER = 110_900_000
_DECODER_WINDOW = 8
_WAN_TOKENIZER, _WAN_CHANNELS = 126_892_531, 96
_LLAMA_GUARD = 8_030_261_248
_REFINER = 8_292_166_656
_SIGLIP_VISION, _FACE_DETECTOR = 428_225_600, 27_293_600
# Parameters, and work on a prompt of 512 tokens: the first measured, the second estimated.
_TEXT_ENCODERS = {
    "google-t5/t5-11b": (4_864_791_552, 64 * GIB // 100),
    "cosmos-nemo/Cosmos-Nano-T5": (134_272, 2**25),
}

ORDER = (
    "text_guard",
    "upsampler",
    "text_guard",
    "text_encoder",
    "denoise",
    "tokenizer",
    "video_guard",
)
"""The stages of one video, as they are entered."""
_ORDER_WITH_GIVEN_FRAMES = (
    "upsampler",
    "text_guard",
    "text_encoder",
    "tokenizer",
    "denoise",
    "tokenizer",
    "video_guard",
)
"""The tokenizer encodes first. That takes less than its decoding later, for which its work is predicted."""
_ORDER_OF_TOKENS = ("discrete_tokenizer", "token_generation", "diffusion_decoder", "tokenizer", "video_guard")
"""Of autoregressive models. Where the discrete tokenizer makes the frames, see token_stages."""
_ORDER_WITHOUT_UPSAMPLER = tuple(name for name in dict.fromkeys(ORDER) if name != "upsampler")
_OFFLOAD_NAME = {
    "text_guard": "guardrails",
    "upsampler": "prompt_upsampler",
    "video_guard": "guardrails",
    "discrete_tokenizer": "tokenizer",
}
"""Where --offload calls a stage by another name."""
_ON_EVERY_RANK = ("denoise", "token_generation", "diffusion_decoder")
PUBLISHED_OFFLOADS = tuple(
    frozenset(names)
    for names in accumulate(
        (["prompt_upsampler"], ["guardrails"], ["text_encoder"], ["tokenizer"], ["denoise"])
    )
)
"""The rows of the released models' memory table (spec/predict1-diffusion.md, 10), each one stage more."""

_OFFLOADS_OF_TOKENS = tuple(
    frozenset(names)
    for names in accumulate((["guardrails"], ["diffusion_decoder"], ["tokenizer"], ["token_generation"]))
)
"""Likewise of the autoregressive models' (spec/predict1-autoregressive.md, 9)."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one stage: of its weights, and on top of them while it runs."""

    name: str
    weights: int
    work: int

    def is_in(self, offload: frozenset[str]) -> bool:
        return _OFFLOAD_NAME.get(self.name, self.name) in offload


@dataclass(frozen=True)
class Prediction:
    """Of one way to run a card, for one video or for one chunk or clip of it."""

    stages: tuple[StageMemory, ...]
    peak: int
    """Of GPU 0, in tensors; the GPU needs DEVICE_OVERHEAD more."""
    host: int
    """Of pinned memory, for the parked copies of all ranks together."""


def predict(
    card: ModelCard,
    *,
    offload: frozenset[str] = frozenset(),
    is_batch: bool = False,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    plan: Plan | None = None,
    num_branches: int | None = None,
    guardrails: bool = True,
    upsamples: bool = True,
    text_encoder_itemsize: int = _BFLOAT16,
) -> Prediction:
    """Peak and host memory; arguments as of `stage_memory`, `peak` and `host_bytes`."""
    stages = stage_memory(
        card,
        height=height,
        width=width,
        num_frames=num_frames,
        plan=plan,
        num_branches=num_branches,
        guardrails=guardrails,
        upsamples=upsamples,
        text_encoder_itemsize=text_encoder_itemsize,
    )
    return Prediction(
        stages,
        peak=peak(stages, offload=offload, is_batch=is_batch, order=order_of(card)),
        host=host_bytes(stages, offload, plan=plan),
    )


def stage_memory(
    card: ModelCard,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    plan: Plan | None = None,
    num_branches: int | None = None,
    guardrails: bool = True,
    upsamples: bool = True,
    text_encoder_itemsize: int = _BFLOAT16,
) -> tuple[StageMemory, ...]:
    """The stages that run, in the order of their first use. Sizes that are None are the card's.

    num_frames: of the whole video; what is longer than the network makes at once is made in chunks.
    num_branches: network calls a step, 2 with guidance; None as with the card's guidance. guardrails,
    upsamples: whether they run, be they the card's or a person's own; guards are taken to be as large as the
    released ones.
    """
    if card.tokens is not None:
        return token_stages(card, card.tokens, plan=plan or Plan(), guardrails=guardrails)
    height, width = height or card.video.height, width or card.video.width
    side = card.tokenizer.spatial_compression
    at_once = card.video.at_once(num_frames or card.video.num_frames)
    latent = card.latent_frames(at_once), height // side, width // side
    branches = card.num_branches if num_branches is None else num_branches
    stages = {
        "text_encoder": _text_encoder(card, itemsize=text_encoder_itemsize),
        "denoise": _denoise(card.network, latent, plan=plan or Plan(), num_branches=branches),
        "tokenizer": _tokenizer(card, latent),
    }
    if guardrails:
        stages["text_guard"] = StageMemory("text_guard", _LLAMA_GUARD * _BFLOAT16, _LANGUAGE_WORK)
        stages["video_guard"] = _video_guard(latent)
    if upsamples:
        stages["upsampler"] = _upsampler(card)
    return tuple(stages[name] for name in dict.fromkeys(order_of(card)) if name in stages)


def token_stages(
    card: ModelCard, tokens: TokenModel, *, plan: Plan, guardrails: bool = True, batch_size: int = 1
) -> tuple[StageMemory, ...]:
    """Of an autoregressive model with its decoder, if it has one; batch_size: videos whose tokens are drawn
    together.

    The decoder makes at most _DECODER_WINDOW latent frames at once.
    """
    _, rows, columns = tokens.network.latent_THW
    side = tokens.tokenizer.spatial_compression // card.tokenizer.spatial_compression
    latent = _DECODER_WINDOW, rows * side, columns * side
    stages = [
        StageMemory(
            "discrete_tokenizer",
            int(_DISCRETE_TOKENIZER * (tokens.tokenizer.channels / _CHANNELS) ** 2) * _BFLOAT16,
            int(_DISCRETE_WORK * rows * columns * tokens.tokenizer.channels / _CHANNELS),
        ),
        _token_generation(tokens.network, tensor_parallel=plan.tp, batch_size=batch_size),
    ]
    if card.has_diffusion_decoder:
        decoder = _denoise(card.network, latent, plan=plan, num_branches=card.num_branches)
        stages += [replace(decoder, name="diffusion_decoder"), _tokenizer(card, latent)]
    if guardrails:
        stages.append(_video_guard(latent))
    return tuple(stages)


def token_parameters(shape: TokenShape, *, tensor_parallel: int = 1) -> int:
    """Of one rank's part of a token transformer."""
    width, heads = shape.hidden_size, shape.num_heads * shape.head_dim
    key_value = shape.num_kv_heads * shape.head_dim
    layer = width * (2 * heads + 2 * key_value + 3 * shape.ffn_hidden_size)
    norms = 2 * width + 2 * shape.head_dim
    if shape.takes_text:
        layer += 2 * width * heads + 2 * shape.text_dim * key_value
        norms += width + 2 * shape.head_dim
    ends = (shape.embedding_rows + shape.vocab_size) * width
    return (shape.num_layers * layer + ends) // tensor_parallel + shape.num_layers * norms + width


def _token_generation(shape: TokenShape, *, tensor_parallel: int, batch_size: int) -> StageMemory:
    """With the activations of the longest prompt: two fifths of the tokens."""
    prompt = shape.num_video_tokens * 2 // shape.latent_THW[0]
    activations = prompt * (4 * shape.hidden_size + 3 * shape.ffn_hidden_size // tensor_parallel)
    drawing = token_work(shape, batch_size=batch_size, tensor_parallel=tensor_parallel)
    work = drawing + batch_size * activations * _BFLOAT16
    weights = token_parameters(shape, tensor_parallel=tensor_parallel) * _BFLOAT16
    return StageMemory("token_generation", weights, work)


def order_of(card: ModelCard) -> tuple[str, ...]:
    """The stages of one of the card's videos, as they are entered."""
    if card.tokens is not None:
        return _ORDER_OF_TOKENS
    if card.starts_from_frames:
        return _ORDER_WITH_GIVEN_FRAMES
    return _ORDER_WITHOUT_UPSAMPLER if card.task is Task.TEXT2IMAGE else ORDER


def peak(
    stages: tuple[StageMemory, ...],
    *,
    offload: frozenset[str],
    is_batch: bool,
    order: tuple[str, ...] = ORDER,
) -> int:
    """The most bytes in use at once, where the stages are entered in `order`.

    A stage that is not offloaded stays after its first use; in a batch it is there before it too, from the
    video before. Prefetched weights are not counted: they take only what would stay free.
    """
    by_name = {stage.name: stage for stage in stages}
    resident = {stage.name: stage.weights for stage in stages if is_batch and not stage.is_in(offload)}
    most = 0
    for stage in (by_name[name] for name in order if name in by_name):
        others = sum(weights for name, weights in resident.items() if name != stage.name)
        most = max(most, others + stage.weights + stage.work)
        if not stage.is_in(offload):
            resident[stage.name] = stage.weights
    return most


def host_bytes(stages: tuple[StageMemory, ...], offload: frozenset[str], *, plan: Plan | None = None) -> int:
    """Of the host copies of all parked stages of all ranks.

    Each rank has its networks, or its parts of them; the other stages are those of each replica's first rank.
    """
    plan = plan or Plan()
    return sum(
        stage.weights * (plan.num_ranks if stage.name in _ON_EVERY_RANK else plan.replicas)
        for stage in stages
        if stage.is_in(offload)
    )


def published_offloads(card: ModelCard) -> tuple[frozenset[str], ...]:
    """What is offloaded in each row of the released models' memory table, each one stage more."""
    return PUBLISHED_OFFLOADS if card.tokens is None else _OFFLOADS_OF_TOKENS


def published_rows(card: ModelCard, *, is_batch: bool = False) -> tuple[tuple[frozenset[str], int], ...]:
    """What is offloaded, and the predicted peak, for each row of the released models' memory table.

    With guardrails and the upsampler on, at the card's own size, on one GPU.
    """
    stages, order = stage_memory(card), order_of(card)
    return tuple(
        (offload, peak(stages, offload=offload, is_batch=is_batch, order=order))
        for offload in published_offloads(card)
    )


def network_parameters(shape: DiTShape, *, tensor_parallel: int = 1) -> int:
    """Of one rank's part of the diffusion network, as it is in memory: with the fused adaLN matrices."""
    width, rank, patch = shape.hidden_size, shape.adaln_lora_dim, shape.patch_size
    linears = 6 * width * width + 2 * width * shape.text_dim + 2 * width * shape.ffn_hidden_size
    whole = 30 * rank * width + 4 * shape.head_dim
    places = 0
    if shape.family is Family.COSMOS1:
        places = shape.max_latent_frames + (shape.max_latent_height + shape.max_latent_width) // patch
    timestep = 4 * width * width + width + shape.token_vocab * shape.token_dim
    ends = (shape.patch_dim + shape.latent_channels * patch**2 + 3 * rank) * width
    return shape.num_layers * (linears // tensor_parallel + whole) + places * width + timestep + ends


def language_parameters(shape: LanguageShape) -> int:
    """Of a Mistral language model whose embedding and output matrices are two."""
    width, heads = shape.hidden_size, shape.head_dim * shape.num_heads
    key_value = shape.head_dim * shape.num_kv_heads
    layer = width * (2 * heads + 2 * key_value + 3 * shape.ffn_hidden_size + 2)
    return shape.num_layers * layer + 2 * shape.vocab_size * width + width


def token_work(
    shape: TokenShape, *, batch_size: int = 1, tensor_parallel: int = 1, itemsize: int = _BFLOAT16
) -> int:
    """Of one rank that makes so many videos of tokens together: keys and values, and logits as one is drawn.

    What the network needs inside to read a prompt is not in it. Logits are whole on every rank; keys and
    values are split, a head at least being on each.
    """
    heads = -(-shape.num_kv_heads // tensor_parallel)
    one_token = 2 * shape.num_layers * heads * shape.head_dim * itemsize
    logits = shape.vocab_size * (itemsize + _BYTES_TO_DRAW)
    return batch_size * (shape.max_length * one_token + logits)


def vision_parameters(shape: VisionShape, language_width: int) -> int:
    """Of a Pixtral vision tower, and of the two linears that lead to a language model of that width."""
    width = shape.hidden_size
    layer = width * (4 * width + 3 * shape.ffn_hidden_size + 2)
    tower = _COLORS * shape.patch_size**2 * width + width + shape.num_layers * layer
    return tower + language_width * (width + language_width + 2)


def _upsampler(card: ModelCard) -> StageMemory:
    """One that looks at images keeps the keys and values of as many tokens as it may read and write."""
    if card.network.family is Family.PREDICT2:
        return StageMemory("upsampler", _REFINER * _BFLOAT16, _REFINER_WORK)
    language, parameters = card.upsampler, language_parameters(card.upsampler)
    if card.task is Task.TEXT2WORLD:
        return StageMemory("upsampler", parameters * _BFLOAT16, _LANGUAGE_WORK)
    one_token = 2 * language.num_layers * language.num_kv_heads * language.head_dim * _BFLOAT16
    weights = (parameters + vision_parameters(card.vision, language.hidden_size)) * _BFLOAT16
    return StageMemory("upsampler", weights, one_token * language.max_length + _IMAGE_WORK)


def _text_encoder(card: ModelCard, *, itemsize: int) -> StageMemory:
    """An encoder of a person's own is taken to be as large as the released one."""
    default = _TEXT_ENCODERS["google-t5/t5-11b"]
    parameters, work = _TEXT_ENCODERS.get(card.sources.text_encoder, default)
    return StageMemory("text_encoder", parameters * itemsize, work * itemsize // _BFLOAT16)


def _denoise(
    shape: DiTShape, latent_THW: tuple[int, int, int], *, plan: Plan, num_branches: int
) -> StageMemory:
    """Each branch whose turn it is on this rank keeps its text's keys and values for the whole video."""
    frames, rows, columns = latent_THW
    tokens = frames * (rows // shape.patch_size) * (columns // shape.patch_size)
    one_width = -(-tokens // plan.cp) * shape.hidden_size * _BFLOAT16
    split = _WIDTHS_SPLIT_BY_TENSOR_PARALLEL + (_WIDTHS_TO_EXCHANGE if plan.cp > 1 else 0)
    widths = _WIDTHS - _WIDTHS_SPLIT_BY_TENSOR_PARALLEL + split / plan.tp
    branches = num_branches if plan.cfg == 1 else 1
    text = shape.num_layers * 2 * shape.text_length * shape.hidden_size // plan.tp * _BFLOAT16
    weights = network_parameters(shape, tensor_parallel=plan.tp) * _BFLOAT16
    return StageMemory("denoise", weights, int(widths * one_width) + branches * text)


def _tokenizer(card: ModelCard, latent_THW: tuple[int, int, int]) -> StageMemory:
    """Decoding: the pieces after the middle block, or the middle block itself, whichever needs more.

    What looks at images has the encoder's weights too.
    """
    frames, rows, columns = latent_THW
    if isinstance(card.tokenizer, WanTokenizerShape):
        share = rows * columns / _LATENT_CELLS * card.tokenizer.channels / _WAN_CHANNELS
        weights = int(_WAN_TOKENIZER * (card.tokenizer.channels / _WAN_CHANNELS) ** 2) * _BFLOAT16
        return StageMemory("tokenizer", weights, int(share * _WAN_DECODE))
    cells, channels = rows * columns / _LATENT_CELLS, card.tokenizer.channels / _CHANNELS
    pieces = _DECODE_GIB + _DECODE_GIB_PER_LATENT_FRAME * min(frames, _FRAMES_PER_PIECE)
    at_once = frames if frames < 2 else 2 + frames % 2
    scores = _COPIES_OF_SCORES * at_once * (rows * columns) ** 2 * _BFLOAT16
    middle = cells * channels * _MIDDLE_GIB_PER_LATENT_FRAME * frames * GIB + scores
    encoder = _TOKENIZER_ENCODER if card.starts_from_frames else 0
    weights = int((encoder + _TOKENIZER_DECODER) * channels**2) * _BFLOAT16
    return StageMemory("tokenizer", weights, int(max(cells * channels * pieces * GIB, middle)))


def _video_guard(latent_THW: tuple[int, int, int]) -> StageMemory:
    weights = (_SIGLIP_VISION + _FACE_DETECTOR) * _FLOAT32
    _, rows, columns = latent_THW
    return StageMemory("video_guard", weights, _VIDEO_GUARD_WORK * rows * columns // _LATENT_CELLS)
