"""The rows of the released models' memory tables, as they are predicted here."""

from itertools import accumulate

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.memory.order import order_of
from cosmos_nemo.memory.stages import stage_memory
from cosmos_nemo.memory.totals import peak

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
