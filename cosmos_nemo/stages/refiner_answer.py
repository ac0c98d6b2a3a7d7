"""The tokens with which the prompt refiner answers: drawn as its folder says, plain ASCII alone.

L is the length of the chat, V the vocabulary; the three axes of a position are time, row and column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.language_model import GumbelNoise, refuse_not_finite
from cosmos_nemo.stages.refiner_image import Patches

_SETTINGS = "generation_config.json"

Step = Callable[[Tensor, Tensor], Tensor]
"""(tokens so far [1, L], logits [1, V]) -> logits [1, V]"""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn from logits. The values here are those that transformers takes unless given."""

    do_sample: bool = False
    """Otherwise the likeliest token is taken, whatever the next three say."""
    temperature: float = 1.0
    top_k: int = 50
    """0 for all."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    end_tokens: tuple[int, ...] = ()


def read_sampling(folder: Path) -> Sampling:
    """From generation_config.json, if there is one; CheckpointError if a value has no meaning."""
    path = folder / _SETTINGS
    content = read_json(path) if path.is_file() else {}
    given = {
        name: content[name]
        for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
        if content.get(name) is not None
    }
    ends = content.get("eos_token_id", [])
    ends = ends if isinstance(ends, list) else [ends]
    _check(path, given | {"eos_token_id": ends})
    return Sampling(**given, end_tokens=tuple(ends))


def plain_ascii_mask(tokenizer: Any, *, vocab_size: int) -> Tensor:
    """bool [V]: tokens that may be drawn, which are printable ASCII, white space, or marks of the chat.

    A piece of a longer character, and a token that the tokenizer does not know, may not.
    """
    known = min(len(tokenizer), vocab_size)
    texts = tokenizer.batch_decode([[token] for token in range(known)], clean_up_tokenization_spaces=False)
    allowed_V = torch.zeros(vocab_size, dtype=torch.bool)
    allowed_V[:known] = torch.tensor([_is_plain(text) for text in texts])
    for token, mark in tokenizer.added_tokens_decoder.items():
        if mark.special and token < vocab_size:
            allowed_V[token] = True
    return allowed_V


def chat_positions(chat: list[int], *, image_token: int, rows: int, columns: int) -> Tensor:
    """int64 [3, 1, L]: text moves along all three axes at once, the image's tokens along rows and columns.

    `rows` and `columns` are the image's, in tokens. What comes after it starts beyond its longer side.
    """
    start = chat.index(image_token)
    assert chat.count(image_token) == rows * columns, f"{rows} x {columns} tokens of the image"
    before = torch.arange(start).expand(3, -1)
    inside = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)).T + start
    num_after = len(chat) - start - rows * columns
    after = (torch.arange(num_after) + start + max(rows, columns)).expand(3, -1)
    return torch.cat([before, inside, after], dim=1)[:, None]


@torch.no_grad()
def refined_tokens(
    model: Any,
    chat: list[int],
    *,
    image: Patches,
    sampling: Sampling,
    end_tokens: frozenset[int],
    allowed_V: Tensor,
    num_tokens: int,
    seed: int,
) -> list[int]:
    """Up to `num_tokens` tokens drawn after `chat`, the last of them an end token unless they ran out.

    `chat` has an image token for every merged square of the image's patches. The same seed draws the same
    tokens, and no global random state is used. FloatingPointError if the model's logits are not finite.
    """
    merge = model.config.vision_config.spatial_merge_size
    positions_31L = chat_positions(
        chat,
        image_token=model.config.image_token_id,
        rows=image.rows // merge,
        columns=image.columns // merge,
    ).to(model.device)
    seen: dict[str, Tensor] = {
        "pixel_values": image.values_ND.to(device=model.device, dtype=model.dtype),
        "image_grid_thw": torch.tensor([[1, image.rows, image.columns]], device=model.device),
    }
    tokens_1L = fed_1L = torch.tensor([chat], device=model.device)
    steps, cache, drawn = _steps(sampling, allowed_V.to(model.device), seed=seed), None, list[int]()
    while len(drawn) < num_tokens and end_tokens.isdisjoint(drawn[-1:]):
        # With positions given, no version of the model guesses them from what it saw before.
        output = model(
            input_ids=fed_1L,
            position_ids=positions_31L,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **seen,
        )
        cache, seen = output.past_key_values, {}
        logits_1V = output.logits[:, -1].float()
        for step in steps:
            logits_1V = step(tokens_1L, logits_1V)
        fed_1L = logits_1V.argmax(dim=-1, keepdim=True)
        tokens_1L = torch.cat([tokens_1L, fed_1L], dim=1)
        positions_31L = positions_31L[..., -1:] + 1
        drawn.append(int(fed_1L))
    return drawn


def _steps(sampling: Sampling, allowed_V: Tensor, *, seed: int) -> list[Step]:
    """In transformers' order. The largest of what they leave is the token drawn."""
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps: list[Step] = [refuse_not_finite]
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    steps.append(lambda _, logits_1V: logits_1V.masked_fill(~allowed_V, -torch.inf))
    if not sampling.do_sample:
        return steps
    steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(float(sampling.top_p)))
    return [*steps, GumbelNoise(seed)]


def _is_plain(text: str) -> bool:
    return bool(text) and text.isascii() and all(each.isprintable() or each.isspace() for each in text)


def _check(path: Path, content: dict[str, Any]) -> None:
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "do_sample": ("true or false", lambda value: isinstance(value, bool)),
        "temperature": ("a number above 0", lambda value: _is_number(value) and value > 0),
        "top_k": ("a whole number, 0 for all", lambda value: _is_whole(value)),
        "top_p": ("a number above 0, up to 1", lambda value: _is_number(value) and 0 < value <= 1),
        "repetition_penalty": ("a number above 0", lambda value: _is_number(value) and value > 0),
        "eos_token_id": ("a token or a list of tokens", lambda value: all(map(_is_whole, value))),
    }
    for name, value in content.items():
        rule, holds = rules[name]
        if not holds(value):
            raise CheckpointError(f"{path}: {name} must be {rule}, but is {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
