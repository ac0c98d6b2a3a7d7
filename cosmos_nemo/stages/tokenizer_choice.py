"""The video tokenizer stage that serves a card."""

from typing import Any

from cosmos_nemo.catalog import TokenizerShape, WanTokenizerShape
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage

AnyTokenizer = Tokenizer | WanTokenizerStage


def tokenizer_for(shape: TokenizerShape | WanTokenizerShape, **arguments: Any) -> AnyTokenizer:
    """The stage for a tokenizer of these sizes; arguments: as of both stages, but for the shape."""
    if isinstance(shape, WanTokenizerShape):
        return WanTokenizerStage(shape=shape, **arguments)
    return Tokenizer(shape=shape, **arguments)
