"""The text guard: the word lists, then Llama Guard 3, judge a prompt before anything is made of it."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.guardrail.outcome import Blocked, GuardrailUnavailable
from cosmos_nemo.stages.guardrail.text_guard_folder import (
    check_guard_folder,
    empty_guard,
    end_tokens,
    guard_tokenizer,
    stored_weights,
)
from cosmos_nemo.stages.guardrail.text_verdict import CATEGORIES, hazards_in
from cosmos_nemo.stages.guardrail.word_lists import WordLists
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.language_model import refuse_not_finite

_MAX_ANSWER_TOKENS = 100
_LLAMA_GUARD = "Llama Guard"


def check_text_guard(word_lists: Path, folder: Path) -> None:
    """CheckpointError unless both folders hold what the text guard needs. Reads no weights."""
    WordLists.read(word_lists)
    check_guard_folder(folder)


class TextGuard(Stage):
    """Passes a prompt on, or says why not. Fails closed: what cannot be judged does not pass.

    Entering reads nothing yet: the weights become resident with the first prompt that the word lists pass.
    """

    name: ClassVar[str] = "text_guard"

    def __init__(
        self,
        *,
        word_lists: Path,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        offload: bool = False,
    ) -> None:
        """word_lists: "blocklist" of the guardrail; folder: Llama-Guard-3-8B as transformers has it."""
        super().__init__(device=device, offload=offload)
        self.word_lists, self.folder, self.dtype = word_lists, folder, dtype

    def __call__(self, text: str) -> str:
        """`text`, unchanged, if it is safe (spec/predict1-diffusion.md, 7.4).

        Blocked if a guard finds it unsafe; ItemError if it is too long to be judged, or if the model's
        answer is neither; GuardrailUnavailable if a guard failed, whatever the reason.
        """
        try:
            self._judge(text)
        except (Blocked, ItemError):
            raise
        except Exception as error:
            raise GuardrailUnavailable(
                f"the text guard could not judge the prompt: {type(error).__name__}: {error}"
            ) from error
        return text

    def reside(self) -> None:
        """Nothing yet: a prompt that the word lists block does not need the weights."""

    def build(self) -> nn.Module:
        """Filled on the device tensor by tensor, so that the host never holds the model."""
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        model: Any = empty_guard(self.folder)
        files = stored_weights(self.folder, model)
        model = model.to(self.dtype).to_empty(device=self.device).eval().requires_grad_(False)
        model.tie_weights()
        # In no file, garbage after meta, and float32 whatever the weights are.
        model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(self.device)
        for name, file in files.items():
            model.get_parameter(name).copy_(file.read(name))
        return model

    def _judge(self, text: str) -> None:
        if (found := self._lists.find(text)) is not None:
            raise Blocked("word lists", found)
        tokens = self._question(text)
        super().reside()
        hazards = hazards_in(self._answer(tokens))
        if hazards is not None:
            raise Blocked(_LLAMA_GUARD, hazards)

    def _question(self, text: str) -> Tensor:
        """Tokens [1, L] of the guard's task with `text` as the user's message."""
        from transformers import LlamaConfig

        # In the text they would end the message and let it answer for the guard.
        for mark in self._tokenizer.added_tokens_decoder.values():
            if mark.special and mark.content in text:
                raise Blocked(_LLAMA_GUARD, f"the prompt contains {mark.content}, which controls the guard")
        question = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            categories={code: f"{name}." for code, name in CATEGORIES.items()},
            tokenize=False,
        )
        if text.strip() not in question:
            raise CheckpointError(f"the chat template of {self.folder} leaves the prompt out")
        tokens = self._tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids
        limit = LlamaConfig.from_pretrained(self.folder, local_files_only=True).max_position_embeddings
        if tokens.shape[1] + _MAX_ANSWER_TOKENS > limit:
            raise ItemError(
                f"The prompt makes a question of {tokens.shape[1]} tokens, of which Llama Guard can read "
                f"{limit - _MAX_ANSWER_TOKENS}. Shorten it."
            )
        return tokens.to(self.device)

    @torch.no_grad()
    def _answer(self, tokens: Tensor) -> str:
        """The likeliest answer, without drawing random numbers; FloatingPointError if none is likeliest."""
        from transformers import GenerationConfig, LogitsProcessorList

        model: Any = self.module
        ends = end_tokens(self.folder, self._tokenizer)
        how = GenerationConfig(
            do_sample=False, max_new_tokens=_MAX_ANSWER_TOKENS, eos_token_id=ends, pad_token_id=ends[0]
        )
        model.generation_config = how  # or what this leaves open would come from the model's own settings
        answered = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            logits_processor=LogitsProcessorList([refuse_not_finite]),
        )
        return self._tokenizer.decode(answered[0, tokens.shape[1] :], skip_special_tokens=True)

    @cached_property
    def _lists(self) -> WordLists:
        return WordLists.read(self.word_lists)

    @cached_property
    def _tokenizer(self) -> Any:
        return guard_tokenizer(self.folder)
