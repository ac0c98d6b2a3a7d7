"""T5: prompts to the embeddings that the networks attend to.

B prompts, L text length, D text width.
"""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.parallel.rank_zero import rank_zero
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.text_cache import EncodedText, TextCache, cache_key
from cosmos_nemo.stages.text_folder import text_folder_identity, weight_files

logger = logging.getLogger(__name__)
_WORDS_SHOWN = 5
_WORD_TABLE = "encoder.embed_tokens.weight"
"""The other name of shared.weight, under which some files hold the one table."""


class TextEncoder(Stage):
    """A T5 encoder on the first rank of `group`, whose embeddings reach all ranks.

    Entering reads no weights yet: they become resident with the first prompt that is not in the cache.
    """

    name: ClassVar[str] = "text_encoder"

    def __init__(
        self,
        *,
        folder: Path,
        text_length: int,
        text_dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        offload: bool = False,
        group: ProcessGroup | None = None,
        cache: TextCache | None = None,
    ) -> None:
        """folder: config.json, tokenizer and weights as transformers has them; group None: one process."""
        super().__init__(device=device, offload=offload)
        self.folder, self.dtype = folder, dtype
        self.text_length, self.text_dim = text_length, text_dim
        self.group, self.cache = group, cache

    def __call__(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, D] in `dtype`, zero past each prompt's end (spec/predict1-diffusion.md, 7.1).

        A collective: every rank of the group calls it. A prompt of more than L tokens is cut with a warning.
        """
        if self.group is None:
            return self._encode_all(prompts)
        return rank_zero(lambda: self._encode_all(prompts), self.group).to(self.device)

    def reside(self) -> None:
        """Nothing yet: only a prompt that the cache lacks needs the weights."""

    def build(self) -> nn.Module:
        """Filled on the device tensor by tensor, so that the host never holds the model.

        But for a pytorch_model.bin in torch's old format, before zip archives: it can only be read whole.
        """
        from transformers import T5Config, T5EncoderModel

        with torch.device("meta"):
            model = T5EncoderModel(T5Config.from_pretrained(self.folder, local_files_only=True))
        model = model.to(self.dtype).to_empty(device=self.device).eval().requires_grad_(False)
        model.tie_weights()
        self._fill(model)
        return model

    def _fill(self, model: nn.Module) -> None:
        stored = {
            name: file for file in map(open_checkpoint, weight_files(self.folder)) for name in file.names()
        }
        parameters = dict(model.named_parameters())
        sources = {
            name: _WORD_TABLE if name == "shared.weight" and name not in stored else name
            for name in parameters
        }
        if missing := sorted(source for source in sources.values() if source not in stored):
            raise CheckpointError(
                f"{self.folder} lacks {len(missing)} tensors of the T5 that its config.json describes, "
                f"first: {missing[0]}."
            )
        for name, parameter in parameters.items():
            found = stored[sources[name]].shape(sources[name])
            if found != tuple(parameter.shape):
                raise CheckpointError(
                    f"{self.folder}: {sources[name]} is {found}, "
                    f"but config.json makes it {tuple(parameter.shape)}."
                )
            parameter.copy_(stored[sources[name]].read(sources[name]))

    def _encode_all(self, prompts: list[str]) -> Tensor:
        encoded = [self._look_up(prompt) for prompt in prompts]
        for prompt, text in zip(prompts, encoded, strict=True):
            self._report_cut(prompt, text)
        return torch.stack([text.text_LD.to(self.device) for text in encoded])

    def _look_up(self, prompt: str) -> EncodedText:
        if self.cache is None:
            return self._encode(prompt)
        key = cache_key(prompt=prompt, encoder=self._identity, dtype=self.dtype, text_length=self.text_length)
        found = self.cache.read(key, shape=(self.text_length, self.text_dim), dtype=self.dtype)
        if found is None:
            found = self._encode(prompt)
            if torch.isfinite(found.text_LD).all():  # a broken embedding must be reported every time
                self.cache.write(key, found)
        return found

    @torch.no_grad()
    def _encode(self, prompt: str) -> EncodedText:
        super().reside()
        assert self.module is not None
        tokens = self._tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        mask_BL = tokens.attention_mask.to(self.device)
        hidden_BLD = self.module(tokens.input_ids.to(self.device), attention_mask=mask_BL).last_hidden_state
        text_LD = torch.where(mask_BL[0, :, None] == 1, hidden_BLD[0], 0)
        if not torch.isfinite(text_LD).all():
            logger.warning(
                "The text encoder %s made a NaN or an infinity: its weights may be damaged", self.folder
            )
        return EncodedText(
            text_LD=text_LD.to(self.dtype),
            num_tokens=len(self._tokenizer(prompt, verbose=False).input_ids),
            kept_characters=int(tokens.offset_mapping.max()),
        )

    def _report_cut(self, prompt: str, text: EncodedText) -> None:
        if text.num_tokens <= self.text_length:
            return
        kept, cut = prompt[: text.kept_characters], prompt[text.kept_characters :]
        logger.warning(
            "The prompt '%s ...' has %d tokens, but the text encoder reads %d: it is cut after '... %s', "
            "and the last %d words are lost. Shorten it.",
            " ".join(kept.split()[:_WORDS_SHOWN]),
            text.num_tokens,
            self.text_length,
            " ".join(kept.split()[-_WORDS_SHOWN:]),
            len(cut.split()),
        )

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import T5TokenizerFast

        return T5TokenizerFast.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def _identity(self) -> str:
        return text_folder_identity(self.folder)
