"""In which order a video enters its stages."""

from cosmos_nemo.catalog import ModelCard, Task

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


def order_of(card: ModelCard) -> tuple[str, ...]:
    """The stages of one of the card's videos, as they are entered."""
    if card.tokens is not None:
        return _ORDER_OF_TOKENS
    if card.starts_from_frames:
        return _ORDER_WITH_GIVEN_FRAMES
    return _ORDER_WITHOUT_UPSAMPLER if card.task is Task.TEXT2IMAGE else ORDER
