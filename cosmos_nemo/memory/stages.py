"""The memory of every stage of a card."""

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.memory.base import BFLOAT16, StageMemory
from cosmos_nemo.memory.denoise import denoise_memory
from cosmos_nemo.memory.frames import tokenizer_memory, video_guard_memory
from cosmos_nemo.memory.language import text_encoder_memory, text_guard_memory, upsampler_memory
from cosmos_nemo.memory.order import order_of
from cosmos_nemo.memory.tokens import token_stages
from cosmos_nemo.plan import Plan


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
    text_encoder_itemsize: int = BFLOAT16,
    batch_size: int = 1,
) -> tuple[StageMemory, ...]:
    """The stages that run, in the order of their first use. Sizes that are None are the card's.

    num_frames: of the whole video; what is longer than the network makes at once is made in chunks.
    num_branches: network calls a step, 2 with guidance; None as with the card's guidance. guardrails,
    upsamples: whether they run, be they the card's or a person's own; guards are taken to be as large as the
    released ones. batch_size: videos whose tokens are drawn together.
    """
    if card.tokens is not None:
        return token_stages(
            card, card.tokens, plan=plan or Plan(), guardrails=guardrails, batch_size=batch_size
        )
    height, width = height or card.video.height, width or card.video.width
    side = card.tokenizer.spatial_compression
    at_once = card.video.at_once(num_frames or card.video.num_frames)
    latent = card.latent_frames(at_once), height // side, width // side
    branches = card.num_branches if num_branches is None else num_branches
    stages = {
        "text_encoder": text_encoder_memory(card, itemsize=text_encoder_itemsize),
        "denoise": denoise_memory(card.network, latent, plan=plan or Plan(), num_branches=branches),
        "tokenizer": tokenizer_memory(card, latent),
    }
    if guardrails:
        stages["text_guard"] = text_guard_memory()
        stages["video_guard"] = video_guard_memory(latent)
    if upsamples:
        stages["upsampler"] = upsampler_memory(card)
    return tuple(stages[name] for name in dict.fromkeys(order_of(card)) if name in stages)
