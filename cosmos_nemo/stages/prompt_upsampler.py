"""The prompt upsampler: a language model that describes at length the scene that a prompt names."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.language_names import language_rules
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.language_model import answer_tokens, build_mistral
from cosmos_nemo.stages.upsampled_text import clean_answer

logger = logging.getLogger(__name__)

_REQUEST = "Upsample the short caption to a long caption: "
"""What the released weights were trained on, before every prompt."""

_TEMPERATURE = 0.01
_LONGEST_ANSWER = 512
_SHORTEST_ROOM = 32
"""Tokens: with less room than this for the answer, the prompt itself says more."""

_TURN_START, _TURN_END = "[INST]", "[/INST]"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


_WITHOUT = (
    "take the prompt as it is written: pass --disable_prompt_upsampler, "
    "or leave --enable_prompt_upsampler out"
)


class UpsamplerError(RuntimeError):
    """The upsampler can answer no prompt at all. A sentence for people, with how to go on without it."""


class PromptUpsampler(Stage):
    """A Mistral language model that knows one task; for one rank alone, it talks to no other.

    Entering reads no weights yet: they become resident with the first prompt that is to be upsampled.
    """

    name: ClassVar[str] = "upsampler"

    def __init__(
        self,
        *,
        shape: LanguageShape,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        offload: bool = False,
        word_limit: int = 250,
        seed: int = 0,
    ) -> None:
        """folder: the weights (model.pt or safetensors) and the tokenizer's files."""
        super().__init__(device=device, offload=offload)
        self.shape, self.folder, self.dtype = shape, folder, dtype
        self.word_limit, self.seed = word_limit, seed

    def __call__(self, prompt: str) -> str:
        """The long prompt, in one line; `prompt` itself if it has more than `word_limit` words.

        So too, with a warning, if it leaves no room for an answer. ItemError if the answer is empty,
        UpsamplerError if the logits are not finite.
        """
        if len(prompt.split()) > self.word_limit:
            return prompt
        tokens = self._chat_tokens(prompt)
        room = min(_LONGEST_ANSWER, self.shape.max_length - len(tokens))
        if room < _SHORTEST_ROOM:
            logger.warning(
                "The prompt has %d tokens of the %d that the upsampler reads and writes together: it is "
                "taken as it is written. Shorten it to have it upsampled.",
                len(tokens),
                self.shape.max_length,
            )
            return prompt
        super().reside()
        return self._cleaned(self._answer(tokens, room=room))

    def reside(self) -> None:
        """Nothing yet: only a prompt that is to be upsampled needs the weights."""

    def build(self) -> nn.Module:
        checkpoint = _open_weights(self.folder)
        return build_mistral(self.shape, checkpoint=checkpoint, device=self.device, dtype=self.dtype)

    def _chat_tokens(self, prompt: str) -> list[int]:
        """The user's turn of a chat in which the upsampler speaks next."""
        tokenizer, request = self._tokenizer, _REQUEST + prompt
        if tokenizer.chat_template is not None:
            chat = [{"role": "user", "content": request}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        else:
            text = f"{tokenizer.bos_token or ''}{_TURN_START}{request}{_TURN_END}"
        tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if max(tokens) >= self.shape.vocab_size:
            raise CheckpointError(
                f"{self.folder}: the tokenizer makes token {max(tokens)}, but the model has "
                f"{self.shape.vocab_size}: they belong to different models."
            )
        return list(tokens)

    def _answer(self, tokens: list[int], *, room: int) -> str:
        end = self._tokenizer.eos_token_id
        try:
            drawn = answer_tokens(
                self.module,
                tokens,
                num_tokens=room,
                end_token=end,
                temperature=_TEMPERATURE,
                seed=self.seed,
            )
        except FloatingPointError as error:
            raise UpsamplerError(
                f"The prompt upsampler {self.folder} cannot answer: its {error}. "
                f"Check its files, or {_WITHOUT}."
            ) from error
        if drawn[-1] != end:
            logger.warning("The upsampled prompt is cut: it has not ended after %d tokens.", room)
        return str(self._tokenizer.decode(drawn, skip_special_tokens=True))

    def _cleaned(self, answer: str) -> str:
        long_prompt = clean_answer(answer)
        if not long_prompt:
            raise ItemError(
                f"The prompt upsampler {self.folder} answered with no text (but {answer!r}). "
                f"Change the prompt, or {_WITHOUT}."
            )
        return long_prompt

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        # The released weights know tokens as the file makes them, not as transformers would correct them.
        return PreTrainedTokenizerFast.from_pretrained(
            self.folder, local_files_only=True, fix_mistral_regex=False
        )


def check_upsampler(folder: Path, shape: LanguageShape) -> None:
    """CheckpointError unless `folder` holds a model of that shape and its tokenizer; reads no weights."""
    language_rules(shape, _open_weights(folder))
    vocabulary = read_json(folder / _TOKENIZER, lacking="has no tokenizer")
    settings = [read_json(path) for name in _TOKENIZER_SETTINGS if (path := folder / name).is_file()]
    specials = {token.get("content") for token in vocabulary.get("added_tokens", [])}
    if not any(each.get("eos_token") for each in settings):
        raise CheckpointError(
            f"{folder} does not say which token ends an answer: eos_token stands in none of "
            f"{', '.join(_TOKENIZER_SETTINGS)}. Download the folder again."
        )
    if any(each.get("chat_template") for each in settings) or (folder / "chat_template.jinja").is_file():
        return
    if missing := {_TURN_START, _TURN_END} - specials:
        raise CheckpointError(
            f"{folder} has no chat template, and its tokenizer no token {min(missing)} to make one of: "
            "is it the tokenizer of Mistral-Nemo-Instruct?"
        )


def _open_weights(folder: Path) -> Checkpoint:
    """model.pt, the released file, whatever lies beside it; else the folder's only checkpoint."""
    released = folder / "model.pt"
    return open_checkpoint(released if released.is_file() else folder)
