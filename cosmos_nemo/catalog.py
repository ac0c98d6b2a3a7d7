"""The released models as data: one card each. Standard library only, so every door reads it instantly.

Sizes are in pixels and frames of the video unless a name says latent. A latent frame holds eight video
frames, of Predict2 four (the first latent frame holds one), and a latent cell 8 x 8 pixels.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any

NOT_ON_THE_HUB = "cosmos-nemo"
"""Owner of repositories that exist only on a disk: embedded, stand-in or a person's own files."""


class Task(Enum):
    """What a model does; picks the pipeline."""

    TEXT2WORLD = "text2world"
    VIDEO2WORLD = "video2world"
    """Goes on from the last frames of an image or a video."""
    WORLD_INTERPOLATOR = "world_interpolator"
    """Fills in frames between those of a video."""
    TEXT2IMAGE = "text2image"
    """A video of a single frame, which is written as an image."""
    AUTOREGRESSIVE = "autoregressive"
    """Goes on from the first frames of a video, token by token."""


class CatalogError(ValueError):
    """A model name, or a field of a card.json, that does not exist."""


class Family(StrEnum):
    """Which diffusion transformer a network is."""

    COSMOS1 = "cosmos1"
    """Cosmos 1.0 and Predict1: learned position tables, one noise level for all frames, angles that follow
    the frame rate."""
    PREDICT2 = "predict2"
    """No tables, a noise level for each latent frame, angles of frame numbers alone."""
    TOKEN_DECODER = "token_decoder"
    """The diffusion decoder of Predict1's autoregressive models: Cosmos 1.0's without tables, told the tokens
    of the video."""


@dataclass(frozen=True, kw_only=True)
class DiTShape:
    """Sizes of a diffusion transformer (spec/predict1-diffusion.md and spec/predict2-video2world.md, 1.1)."""

    family: Family = Family.COSMOS1
    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_hidden_size: int
    adaln_lora_dim: int = 256
    text_dim: int = 1024
    text_length: int = 512
    latent_channels: int = 16
    takes_given_mask: bool = False
    token_vocab: int = 0
    """Of TOKEN_DECODER: how many token ids there are."""
    token_dim: int = 0
    """Of TOKEN_DECODER: channels that a token's embedding adds to the latent's."""
    patch_size: int = 2
    max_latent_frames: int = 128
    max_latent_height: int = 240
    max_latent_width: int = 240
    rope_ratios_THW: tuple[float, float, float] = (2.0, 1.0, 1.0)
    base_fps: float = 24.0
    """Of all but PREDICT2: the frames per second at which angles count frames."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values of a patch before its embedding: latent, (token embedding,) (given mask,) padding mask."""
        return (self.latent_channels + self.token_dim + self.takes_given_mask + 1) * self.patch_size**2


DIFFUSION_DECODER_7B = DiTShape(
    family=Family.TOKEN_DECODER,
    num_layers=28,
    hidden_size=4096,
    num_heads=32,
    ffn_hidden_size=16384,
    token_vocab=64000,
    token_dim=32,
    rope_ratios_THW=(1.0, 1.5, 1.5),
)
"""Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p (spec/predict1-autoregressive.md, 5)."""


LOOKS_BACK = 2
"""Frames that every causal convolution of the video tokenizers' decoders sees before its own."""
FRAMES_PER_PIECE = 8
"""Latent frames that a tokenizer of Predict1 decodes at once."""
DECODER_WINDOW = 8
"""Latent frames that the autoregressive models' diffusion decoder was trained on and makes at once."""


@dataclass(frozen=True, kw_only=True)
class TokenizerShape:
    """Sizes of a continuous video tokenizer of the CV8x8x8 kind (spec/predict1-diffusion.md, 6.1)."""

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    patch_size: int = 4
    spatial_compression: int = 8
    temporal_compression: int = 8
    statistics_frames: int = 16
    """Latent frames for which mean_std.pt holds a mean and a standard deviation."""


@dataclass(frozen=True, kw_only=True)
class WanTokenizerShape:
    """Sizes of a causal video tokenizer of Wan2.1's kind (spec/predict2-video2world.md, 3).

    A latent frame holds four video frames, the first one holds one.
    """

    channels: int = 96
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    halves_time: tuple[bool, ...] = (False, True, True)
    """At each of the spatial halvings of the encoder."""
    spatial_compression: int = 8
    temporal_compression: int = 4


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """Sizes of a Mistral language model, the prompt upsampler (spec/predict1-diffusion.md, 7.2 and 7.3)."""

    num_layers: int = 40
    hidden_size: int = 5120
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    ffn_hidden_size: int = 14336
    vocab_size: int = 131072
    norm_eps: float = 1e-5
    rope_theta: float = 1e6
    max_length: int = 1024
    """Tokens of prompt and answer together."""


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Sizes of a Pixtral vision tower (spec/predict1-diffusion.md, 7.3). Sizes of images are in pixels."""

    num_layers: int = 24
    hidden_size: int = 1024
    num_heads: int = 16
    ffn_hidden_size: int = 4096
    patch_size: int = 16
    max_image_size: int = 1024
    rope_theta: float = 1e4


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """Sizes of an autoregressive transformer of video tokens (spec/predict1-autoregressive.md, 1)."""

    num_layers: int = 16
    hidden_size: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    ffn_hidden_size: int = 14336
    vocab_size: int = 64000
    """Rows of the output; see embedding_rows."""
    latent_THW: tuple[int, int, int] = (5, 40, 64)
    """The video's tokens, which angles count in raster order."""
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scale: float = 1.0
    """Above 1: low frequencies are divided by it, as YaRN does, blended between the two betas."""
    rope_original_THW: tuple[int, int, int] = (3, 40, 64)
    rope_beta_fast: float = 4.0
    rope_beta_slow: float = 1.0
    text_dim: int = 0
    """Width of the text that every layer attends to; 0: no text, no begin-of-video token."""
    text_length: int = 512

    @property
    def takes_text(self) -> bool:
        return self.text_dim > 0

    @property
    def embedding_rows(self) -> int:
        """With text, 64 rows more at most: ids from vocab_size on are special, the first begins a video."""
        return (self.vocab_size // 64 + 1) * 64 if self.takes_text else self.vocab_size

    @property
    def num_video_tokens(self) -> int:
        frames, rows, columns = self.latent_THW
        return frames * rows * columns

    @property
    def max_length(self) -> int:
        """Tokens that keys and values are kept of: the video's, and 64 for the one that begins it."""
        return self.num_video_tokens + (64 if self.takes_text else 0)


@dataclass(frozen=True, kw_only=True)
class DiscreteTokenizerShape:
    """Sizes of a discrete video tokenizer of the DV8x16x16 kind (spec/predict1-autoregressive.md, 3)."""

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 16
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Of finite scalar quantisation: the number of values of each channel of a code."""
    patch_size: int = 4
    spatial_compression: int = 16
    temporal_compression: int = 8

    @property
    def autoencoder(self) -> TokenizerShape:
        """Encoder and decoder, which are those of a continuous tokenizer of these sizes."""
        return TokenizerShape(
            channels=self.channels,
            channel_multipliers=self.channel_multipliers,
            num_res_blocks=self.num_res_blocks,
            latent_channels=self.latent_channels,
            patch_size=self.patch_size,
            spatial_compression=self.spatial_compression,
            temporal_compression=self.temporal_compression,
        )


@dataclass(frozen=True, kw_only=True)
class TokenModel:
    """What makes the tokens of an autoregressive model's videos, and how they are drawn unless asked."""

    network: TokenShape = TokenShape()
    tokenizer: DiscreteTokenizerShape = DiscreteTokenizerShape()
    temperature: float = 1.0
    top_p: float = 0.8


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Sizes the weights were trained for (the defaults) and those the network can make."""

    height: int = 704
    width: int = 1280
    num_frames: int = 121
    fps: int = 24
    min_frames: int = 9
    max_frames: int = 121
    size_multiple: int = 16
    given_frames: tuple[int, ...] = (1, 9)
    """How many frames a Video2World may go on from: those of one latent frame, or of two."""

    def at_once(self, num_frames: int) -> int:
        """Of a video of so many frames, those that the network makes at once: all, or those of a chunk."""
        return num_frames if num_frames <= self.max_frames else self.num_frames


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Hub repositories of a model's files; `weights_folder` is the folder inside the first, "" for its root.

    A model whose `upsampler` is "" has none; one whose `guardrail` is "" comes without guardrails.
    """

    weights: str
    weights_folder: str
    weights_files: tuple[str, ...] = ()
    """In that folder, if it holds several networks: names of this one's file, the first that is there."""
    tokenizer: str
    text_encoder: str
    upsampler: str = ""
    guardrail: str = ""
    """The word lists, the video content filter and the face detector."""
    text_guard: str = ""
    """The language model that judges prompts."""
    discrete_tokenizer: str = ""
    """Of an autoregressive model, whose `weights` are those of the token transformer; likewise the next."""
    diffusion_decoder: str = ""
    """"": it has none, and the discrete tokenizer makes the frames."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Facts of one released model."""

    name: str
    task: Task
    network: DiTShape
    tokenizer: TokenizerShape | WanTokenizerShape
    video: VideoLimits
    sources: Sources
    upsampler: LanguageShape = LanguageShape()
    tokens: TokenModel | None = None
    """Of an autoregressive model: `network` and `tokenizer` are then those of its diffusion decoder."""
    vision: VisionShape = VisionShape()
    """Of the upsampler, where it looks at images: see `starts_from_frames`."""
    sampler: str = "RES"
    num_steps: int = 35
    guidance: float = 7.0
    seed: int = 1
    """Of the released script where none is asked for."""
    sigma_data: float = 0.5

    @property
    def num_branches(self) -> int:
        """Network calls a step at the card's own guidance; see Text2WorldRequest.num_branches."""
        return 1 if self.guidance in (0.0, -1.0) else 2

    @property
    def has_diffusion_decoder(self) -> bool:
        """Of an autoregressive model: whether a network makes latents of its tokens."""
        return bool(self.sources.diffusion_decoder)

    @property
    def starts_from_frames(self) -> bool:
        """Whether it is given frames: then the tokenizer encodes too, and the upsampler looks at them."""
        return self.task in (Task.VIDEO2WORLD, Task.WORLD_INTERPOLATOR)

    def latent_frames(self, num_frames: int) -> int:
        """Of one clip of so many video frames. An interpolator's last one is a latent frame of its own."""
        own = 1 if self.task is Task.WORLD_INTERPOLATOR else 0
        return (num_frames - own - 1) // self.tokenizer.temporal_compression + 1 + own


_TEXT2WORLD_7B = ModelCard(
    name="Cosmos-1.0-Diffusion-7B-Text2World",
    task=Task.TEXT2WORLD,
    network=DiTShape(num_layers=28, hidden_size=4096, num_heads=32, ffn_hidden_size=16384),
    tokenizer=TokenizerShape(),
    video=VideoLimits(),
    sources=Sources(
        weights="nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
        weights_folder="nemo",
        tokenizer="nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        text_encoder="google-t5/t5-11b",
        upsampler="nvidia/Cosmos-1.0-Prompt-Upsampler-12B-Text2World",
        guardrail="nvidia/Cosmos-Guardrail1",
        text_guard="meta-llama/Llama-Guard-3-8B",
    ),
)

_TEXT2WORLD_14B = replace(
    _TEXT2WORLD_7B,
    name="Cosmos-1.0-Diffusion-14B-Text2World",
    network=DiTShape(
        num_layers=36,
        hidden_size=5120,
        num_heads=40,
        ffn_hidden_size=20480,
        rope_ratios_THW=(2.0, 2.0, 2.0),
    ),
    sources=replace(_TEXT2WORLD_7B.sources, weights="nvidia/Cosmos-1.0-Diffusion-14B-Text2World"),
)

_PIXTRAL = LanguageShape(rope_theta=1e9, max_length=4700)
"""Released with 4,300 tokens, of which a square image leaves 80 for its description."""


def _given_frames(card: ModelCard, name: str) -> ModelCard:
    """The Video2World of a Text2World: a wider patch embedding, and an upsampler that sees images."""
    return replace(
        card,
        name=name,
        task=Task.VIDEO2WORLD,
        network=replace(card.network, takes_given_mask=True),
        upsampler=_PIXTRAL,
        sources=replace(
            card.sources,
            weights=f"{card.sources.weights.partition('/')[0]}/{name}",
            upsampler="mistralai/Pixtral-12B-2409" if card.sources.upsampler else "",
        ),
    )


def _between(card: ModelCard, *, seed: int) -> ModelCard:
    """The interpolator of a Video2World: clips of two given frames and eight that it makes.

    The released one has guidance -1, with which the positive prompt has no influence
    (spec/predict1-diffusion.md, 5.3).
    """
    return replace(
        card,
        task=Task.WORLD_INTERPOLATOR,
        video=replace(card.video, num_frames=10, min_frames=10, max_frames=10),
        sampler="RES",
        guidance=-1.0,
        seed=seed,
    )


_VIDEO2WORLD_7B = _given_frames(_TEXT2WORLD_7B, "Cosmos-1.0-Diffusion-7B-Video2World")
_VIDEO2WORLD_14B = _given_frames(_TEXT2WORLD_14B, "Cosmos-1.0-Diffusion-14B-Video2World")


def _predict1(card: ModelCard, name: str, *, is_released: bool = True) -> ModelCard:
    """The Predict1 release of a Cosmos-1.0 model: the same network, another file, tokenizer and sampler."""
    upsampler = card.sources.upsampler
    if card.task is Task.TEXT2WORLD:
        upsampler = "nvidia/Cosmos-UpsamplePrompt1-12B-Text2World"
    return replace(
        card,
        name=name,
        sampler="EDM",
        sources=replace(
            card.sources,
            weights=f"nvidia/{name}" if is_released else f"{NOT_ON_THE_HUB}/{name}",
            weights_folder="",
            tokenizer="nvidia/Cosmos-Tokenize1-CV8x8x8-720p",
            upsampler=upsampler,
        ),
    )


def _predict1_family(small: ModelCard, large: ModelCard, kind: str) -> tuple[ModelCard, ...]:
    """Both sizes, and the names under which the released scripts look for a person's own weights."""
    return (
        _predict1(small, f"Cosmos-Predict1-7B-{kind}"),
        _predict1(large, f"Cosmos-Predict1-14B-{kind}"),
        *(
            _predict1(small, f"Cosmos-Predict1-7B-{kind}_post-trained{how}", is_released=False)
            for how in ("", "-4gpu_80gb", "-8gpu_40gb", "-4gpu_40gb", "-lora")
        ),
        _predict1(large, f"Cosmos-Predict1-14B-{kind}_post-trained", is_released=False),
    )


_INTERPOLATOR = "Cosmos-Predict1-7B-WorldInterpolator"
_PREDICT1 = (
    *_predict1_family(_TEXT2WORLD_7B, _TEXT2WORLD_14B, "Text2World"),
    *_predict1_family(_VIDEO2WORLD_7B, _VIDEO2WORLD_14B, "Video2World"),
    _between(_predict1(_VIDEO2WORLD_7B, _INTERPOLATOR), seed=11),
    _between(_predict1(_VIDEO2WORLD_7B, f"{_INTERPOLATOR}_post-trained", is_released=False), seed=11),
)

_VIDEO2WORLD2 = "Cosmos-Predict2-{size}-Video2World"
_PREDICT2_2B = ModelCard(
    name=_VIDEO2WORLD2.format(size="2B"),
    task=Task.VIDEO2WORLD,
    network=DiTShape(
        family=Family.PREDICT2,
        num_layers=28,
        hidden_size=2048,
        num_heads=16,
        ffn_hidden_size=8192,
        takes_given_mask=True,
        rope_ratios_THW=(1.0, 3.0, 3.0),
    ),
    tokenizer=WanTokenizerShape(),
    video=VideoLimits(num_frames=93, fps=16, min_frames=5, given_frames=(1, 5)),
    sigma_data=1.0,
    sources=Sources(
        weights="nvidia/Cosmos-Predict2-2B-Video2World",
        weights_folder="",
        weights_files=("model.pt", "model-720p-16fps.pt"),
        tokenizer="Wan-AI/Wan2.1-T2V-1.3B",
        text_encoder="google-t5/t5-11b",
        upsampler="nvidia/Cosmos-Reason1-7B",
        guardrail="nvidia/Cosmos-Guardrail1",
        text_guard="meta-llama/Llama-Guard-3-8B",
    ),
)
_PREDICT2_14B = replace(
    _PREDICT2_2B,
    name=_VIDEO2WORLD2.format(size="14B"),
    network=replace(
        _PREDICT2_2B.network,
        num_layers=36,
        hidden_size=5120,
        num_heads=40,
        ffn_hidden_size=20480,
        rope_ratios_THW=(20 / 24, 2.0, 2.0),
    ),
    sources=replace(_PREDICT2_2B.sources, weights="nvidia/Cosmos-Predict2-14B-Video2World"),
)
_HEIGHT_WIDTH = {"480p": (432, 768), "720p": (704, 1280)}
_FRAMES_OF_FPS = {10: 61, 16: 93}


def _predict2_variant(card: ModelCard, resolution: str, fps: int) -> ModelCard:
    """One of the networks that lie in a repository of Predict2: each was trained for one size and rate."""
    height, width = _HEIGHT_WIDTH[resolution]
    return replace(
        card,
        name=f"{card.name}-{resolution}-{fps}fps",
        video=replace(card.video, fps=fps, num_frames=_FRAMES_OF_FPS[fps], height=height, width=width),
        sources=replace(card.sources, weights_files=(f"model-{resolution}-{fps}fps.pt", "model.pt")),
    )


_PREDICT2 = tuple(
    variant
    for card in (_PREDICT2_2B, _PREDICT2_14B)
    for variant in (
        card,
        *(_predict2_variant(card, resolution, fps) for resolution in ("480p", "720p") for fps in (10, 16)),
    )
)


def _predict2_image(card: ModelCard, size: str) -> ModelCard:
    """The Text2Image of a Video2World of Predict2: no given frames, and angles of its own."""
    name = f"Cosmos-Predict2-{size}-Text2Image"
    return replace(
        card,
        name=name,
        task=Task.TEXT2IMAGE,
        network=replace(card.network, takes_given_mask=False, rope_ratios_THW=(1.0, 4.0, 4.0)),
        video=VideoLimits(height=768, width=1360, fps=16, num_frames=1, min_frames=1, max_frames=1),
        guidance=4.0,
        seed=0,
        sources=replace(card.sources, weights=f"nvidia/{name}", weights_files=(), upsampler=""),
    )


_TEXT2IMAGE = (_predict2_image(_PREDICT2_2B, "2B"), _predict2_image(_PREDICT2_14B, "14B"))
_LARGEST_480P = 500_000
"""Pixels of a frame: those of 480p have up to 332,000, those of 720p at least 676,000."""


def variant_for(card: ModelCard, *, height: int | None, width: int | None, fps: int | None) -> ModelCard:
    """Of a repository that holds several networks the one trained nearest to this size and rate.

    `card` itself if it is one of them, or if there is only one. None stands for the card's own.
    """
    pixels = (height or card.video.height) * (width or card.video.width)
    resolution = "480p" if pixels <= _LARGEST_480P else "720p"
    rate = 10 if (fps or card.video.fps) <= 12 else 16
    return CARDS.get(f"{card.name}-{resolution}-{rate}fps", card)


_AUTOREGRESSIVE_4B = ModelCard(
    name="Cosmos-Predict1-4B",
    task=Task.AUTOREGRESSIVE,
    tokens=TokenModel(),
    network=DIFFUSION_DECODER_7B,
    tokenizer=TokenizerShape(),
    video=VideoLimits(height=640, width=1024, num_frames=33, min_frames=33, max_frames=33, fps=25),
    sampler="EDM",
    num_steps=15,
    guidance=1.8,
    seed=0,
    sources=Sources(
        weights="nvidia/Cosmos-Predict1-4B",
        weights_folder="",
        tokenizer="nvidia/Cosmos-Tokenize1-CV8x8x8-720p",
        text_encoder="",
        discrete_tokenizer="nvidia/Cosmos-Tokenize1-DV8x16x16-720p",
        diffusion_decoder="nvidia/Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p",
        guardrail="nvidia/Cosmos-Guardrail1",
    ),
)
_AUTOREGRESSIVE_12B = replace(
    _AUTOREGRESSIVE_4B,
    name="Cosmos-Predict1-12B",
    tokens=TokenModel(network=TokenShape(num_layers=40, hidden_size=5120, rope_scale=2.0)),
    sources=replace(_AUTOREGRESSIVE_4B.sources, weights="nvidia/Cosmos-Predict1-12B"),
)


def _cosmos1(card: ModelCard, size: str) -> ModelCard:
    """The Cosmos-1.0 release of an autoregressive model, with a NeMo folder."""
    name = f"Cosmos-1.0-Autoregressive-{size}"
    return replace(
        card,
        name=name,
        sources=replace(
            card.sources,
            weights=f"nvidia/{name}",
            weights_folder="nemo",
            tokenizer="nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
            discrete_tokenizer="nvidia/Cosmos-1.0-Tokenizer-DV8x16x16",
            diffusion_decoder="nvidia/Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8",
        ),
    )


_AUTOREGRESSIVE = (
    *(_AUTOREGRESSIVE_4B, _AUTOREGRESSIVE_12B),
    *(_cosmos1(_AUTOREGRESSIVE_4B, "4B"), _cosmos1(_AUTOREGRESSIVE_12B, "12B")),
)


_NANO_TEXT2WORLD = ModelCard(
    name="Cosmos-Nano-Text2World",
    task=Task.TEXT2WORLD,
    network=DiTShape(
        num_layers=4,
        hidden_size=256,
        num_heads=8,
        ffn_hidden_size=1024,
        adaln_lora_dim=32,
        text_dim=64,
        text_length=128,
        max_latent_frames=32,
        max_latent_height=64,
        max_latent_width=64,
    ),
    tokenizer=TokenizerShape(channels=16),
    video=VideoLimits(height=128, width=128, num_frames=33),
    guidance=2.0,
    sources=Sources(
        weights=f"{NOT_ON_THE_HUB}/Cosmos-Nano-Text2World",
        weights_folder="nemo",
        tokenizer=f"{NOT_ON_THE_HUB}/Cosmos-Nano-Tokenizer-CV8x8x8",
        text_encoder=f"{NOT_ON_THE_HUB}/Cosmos-Nano-T5",
    ),
)

_NANO_VIDEO2WORLD = replace(
    _given_frames(_NANO_TEXT2WORLD, "Cosmos-Nano-Video2World"),
    # As long as those it was trained on: longer videos are made in chunks.
    video=replace(_NANO_TEXT2WORLD.video, max_frames=_NANO_TEXT2WORLD.video.num_frames),
)
_NANO_PREDICT2 = replace(
    _NANO_VIDEO2WORLD,
    name="Cosmos-Nano-Predict2-Video2World",
    network=replace(
        _NANO_VIDEO2WORLD.network,
        family=Family.PREDICT2,
        rope_ratios_THW=(1.0, 1.0, 1.0),
        # Without tables, nothing in a checkpoint tells other limits.
        max_latent_frames=_PREDICT2_2B.network.max_latent_frames,
        max_latent_height=_PREDICT2_2B.network.max_latent_height,
        max_latent_width=_PREDICT2_2B.network.max_latent_width,
    ),
    tokenizer=WanTokenizerShape(channels=16, channel_multipliers=(1, 2, 4, 3), num_res_blocks=1),
    video=replace(_NANO_VIDEO2WORLD.video, min_frames=5, given_frames=(1, 5)),
    sigma_data=1.0,
    sources=replace(
        _NANO_VIDEO2WORLD.sources,
        weights=f"{NOT_ON_THE_HUB}/Cosmos-Nano-Predict2-Video2World",
        tokenizer=f"{NOT_ON_THE_HUB}/Cosmos-Nano-Tokenizer-Wan",
    ),
)
_NANO_LEVELS = (8, 5, 5, 5, 5)
"""5,000 tokens instead of 64,000, whose rows alone would be nine tenths of a network of this width."""
_NANO_AUTOREGRESSIVE = ModelCard(
    name="Cosmos-Nano-Autoregressive",
    task=Task.AUTOREGRESSIVE,
    tokens=TokenModel(
        network=TokenShape(
            num_layers=6,
            hidden_size=192,
            num_heads=6,
            num_kv_heads=2,
            head_dim=32,
            ffn_hidden_size=512,
            vocab_size=math.prod(_NANO_LEVELS),
            latent_THW=(5, 8, 8),
            # Of the five frequencies of an axis all turn within eight places.
            rope_theta=100.0,
            rope_original_THW=(5, 8, 8),
        ),
        tokenizer=DiscreteTokenizerShape(channels=16, levels=_NANO_LEVELS),
    ),
    # Of a decoder that it does not have.
    network=DIFFUSION_DECODER_7B,
    tokenizer=TokenizerShape(),
    video=VideoLimits(height=128, width=128, num_frames=33, min_frames=33, max_frames=33),
    sampler=_AUTOREGRESSIVE_4B.sampler,
    num_steps=_AUTOREGRESSIVE_4B.num_steps,
    guidance=_AUTOREGRESSIVE_4B.guidance,
    seed=0,
    sources=Sources(
        weights=f"{NOT_ON_THE_HUB}/Cosmos-Nano-Autoregressive",
        weights_folder="nemo",
        tokenizer="",
        text_encoder="",
        discrete_tokenizer=f"{NOT_ON_THE_HUB}/Cosmos-Nano-Tokenizer-DV8x16x16",
    ),
)
_NANO_INTERPOLATOR = _between(_given_frames(_NANO_TEXT2WORLD, "Cosmos-Nano-WorldInterpolator"), seed=1)

CARDS = {
    card.name: card
    for card in (
        *(_TEXT2WORLD_7B, _TEXT2WORLD_14B, _VIDEO2WORLD_7B, _VIDEO2WORLD_14B),
        *_PREDICT1,
        *_PREDICT2,
        *_TEXT2IMAGE,
        *_AUTOREGRESSIVE,
        *(_NANO_TEXT2WORLD, _NANO_VIDEO2WORLD, _NANO_INTERPOLATOR, _NANO_PREDICT2, _NANO_AUTOREGRESSIVE),
    )
}


def find_card(name: str) -> ModelCard:
    """The card called `name`; CatalogError with the nearest names if there is none."""
    if name in CARDS:
        return CARDS[name]
    raise CatalogError(f"--model {name} is unknown. {nearest_names(name)}")


def nearest_names(name: str) -> str:
    """A sentence with the cards that `name` may be meant for, and how to see all."""
    near = difflib.get_close_matches(name, CARDS, n=2, cutoff=0.3) or list(CARDS)
    return f"Nearest: {', '.join(near)}. All: cosmos-nemo models"


def with_overrides(card: ModelCard, fields: dict[str, Any]) -> ModelCard:
    """`card` with the fields of a checkpoint folder's card.json, e.g. {"network": {"num_layers": 4}}.

    Where a model's files come from, and which guardrails it has, is not for a checkpoint to say.
    """
    if "sources" in fields:
        raise CatalogError("card.json: sources cannot be changed. Name the files with the doors' flags.")
    return _replace_nested(card, fields, at="")


def _replace_nested(value: Any, fields: dict[str, Any], at: str) -> Any:
    known = {field.name for field in dataclasses.fields(value)}
    changes = {}
    for name, new in fields.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or sorted(known)
            raise CatalogError(f"card.json: {at}{name} is no field of a card. Nearest: {', '.join(near)}")
        changes[name] = _replacement(getattr(value, name), new, at=f"{at}{name}")
    return replace(value, **changes)


def _replacement(old: Any, new: Any, *, at: str) -> Any:
    """`new` in the type of the field's value `old`; CatalogError if it is of another kind, or no size."""
    if dataclasses.is_dataclass(old):
        if isinstance(new, dict):
            return _replace_nested(old, new, at=f"{at}.")
    elif isinstance(old, Enum):
        if new in {member.value for member in type(old)}:
            return type(old)(new)
    elif isinstance(old, tuple):
        if isinstance(new, list | tuple) and new:
            return tuple(_replacement(old[0], part, at=at) for part in new)
    elif isinstance(old, bool | str):
        if type(new) is type(old):
            return new
    elif isinstance(new, int | float) and not isinstance(new, bool) and new > 0:
        if isinstance(old, float):
            return float(new)
        if isinstance(new, int):
            return new
    raise CatalogError(f"card.json: {at} cannot be {new!r}. It is {old!r} in the model's own card.")


def overrides_of(card: ModelCard, base: ModelCard) -> dict[str, Any]:
    """The fields in which `card` differs from `base`: what its card.json holds."""
    return _differences(card, base)


def _differences(value: Any, base: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        new, old = getattr(value, field.name), getattr(base, field.name)
        if new == old:
            continue
        if dataclasses.is_dataclass(new):
            found[field.name] = _differences(new, old)
        elif isinstance(new, Enum):
            found[field.name] = new.value
        else:
            found[field.name] = new
    return found
