"""The prompt refiner: Qwen2.5-VL joins the words of a prompt with what the first picture shows.

H W are rows and columns in pixels, C colors. Source: spec/predict2-video2world.md, 5.
"""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.refiner_names import RefinerShape, refiner_rules, refiner_shape
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.prompt_upsampler import UpsamplerError
from cosmos_nemo.stages.refiner_answer import Sampling, plain_ascii_mask, read_sampling, refined_tokens
from cosmos_nemo.stages.refiner_chat import (
    IMAGE_TOKEN,
    MARKS,
    TURN_END,
    chat_text,
    prompt_in,
    read_template,
)
from cosmos_nemo.stages.refiner_image import Patches, fitted_size, image_patches
from cosmos_nemo.stages.refiner_model import build_refiner

logger = logging.getLogger(__name__)

_LONGEST_ANSWER = 512
_SHORTEST_ROOM = 160
"""Tokens: the hundred words that are asked for would be cut with fewer."""

_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")
_TOKENIZER = "tokenizer.json"
_SOURCE = "Qwen/Qwen2.5-VL-7B-Instruct"

_WITHOUT = "write the prompt in full yourself and pass --disable_prompt_upsampler"


class PromptRefiner(Stage):
    """A language model that sees one image and reads one prompt; for one rank alone, it talks to no other.

    Entering reads no weights yet: they become resident with the first prompt. Its sizes are those of the
    folder's config.json.
    """

    name: ClassVar[str] = "upsampler"

    def __init__(
        self,
        *,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        offload: bool = False,
        seed: int = 0,
    ) -> None:
        """folder: config.json, safetensors and tokenizer.json of a Qwen2.5-VL or a Cosmos-Reason1."""
        super().__init__(device=device, offload=offload)
        self.folder, self.dtype, self.seed = folder, dtype, seed

    def __call__(self, prompt: str, image_HWC: Tensor) -> str:
        """One paragraph, in one line of ASCII, of what `prompt` (may be empty) makes of the image.

        image: uint8 0..255, of any size. ItemError if the answer is empty, if prompt and image leave no room
        for one, or if the image is far too long for its width; UpsamplerError if the logits are not finite.
        """
        tokens = self._chat_tokens(prompt, *image_HWC.shape[:2])
        room = min(_LONGEST_ANSWER, self._shape.max_length - len(tokens))
        if room < _SHORTEST_ROOM:
            raise ItemError(
                f"The prompt and the image have {len(tokens):,} tokens of the {self._shape.max_length:,} "
                "that the prompt refiner reads and writes together, which leaves no room for an answer. "
                f"Shorten the prompt, or {_WITHOUT}."
            )
        super().reside()
        return self._cleaned(self._answer(image_patches(image_HWC, self._shape.tower), tokens, room=room))

    def reside(self) -> None:
        """Nothing yet: only a prompt that is to be refined needs the weights."""

    def build(self) -> nn.Module:
        return build_refiner(
            self.folder, checkpoint=_open_weights(self.folder), device=self.device, dtype=self.dtype
        )

    def _chat_tokens(self, prompt: str, height: int, width: int) -> list[int]:
        """The chat in which the refiner speaks next, with a token for each square of the image."""
        tower = self._shape.tower
        rows, columns = (
            side // tower.patch_size // tower.merge_size for side in fitted_size(height, width, tower)
        )
        text = chat_text(self._tokenizer, prompt, template=read_template(self.folder), folder=self.folder)
        whole = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * (rows * columns))
        tokens = self._tokenizer(whole, add_special_tokens=False, verbose=False).input_ids
        if max(tokens) >= self._shape.vocab_size:
            raise CheckpointError(
                f"{self.folder}: the tokenizer makes token {max(tokens)}, but the model has "
                f"{self._shape.vocab_size}: they belong to different models."
            )
        return list(tokens)

    def _answer(self, image: Patches, tokens: list[int], *, room: int) -> str:
        try:
            drawn = refined_tokens(
                self.module,
                tokens,
                image=image,
                sampling=self._sampling,
                end_tokens=self._end_tokens,
                allowed_V=self._allowed_V,
                num_tokens=room,
                seed=self.seed,
            )
        except FloatingPointError as error:
            raise UpsamplerError(
                f"The prompt refiner {self.folder} cannot answer: its {error}. "
                f"Check its files, or {_WITHOUT}."
            ) from error
        if drawn[-1] not in self._end_tokens:
            logger.warning("The refined prompt is cut: it has not ended after %d tokens.", room)
        return str(
            self._tokenizer.decode(drawn, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _cleaned(self, answer: str) -> str:
        refined = prompt_in(answer)
        if not refined:
            raise ItemError(
                f"The prompt refiner {self.folder} answered with no text (but {answer!r}). "
                f"Change the prompt or take another image, or {_WITHOUT}."
            )
        return refined

    @cached_property
    def _shape(self) -> RefinerShape:
        return refiner_shape(self.folder)

    @cached_property
    def _sampling(self) -> Sampling:
        return read_sampling(self.folder)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        _check_tokenizer(self.folder, self._shape)
        # From the file alone: settings beside it would change how text is cut, differently in each release.
        return PreTrainedTokenizerFast(tokenizer_file=str(self.folder / _TOKENIZER))

    @cached_property
    def _end_tokens(self) -> frozenset[int]:
        """A turn's end always is one: what a model says behind it is no answer."""
        return frozenset({*self._sampling.end_tokens, self._tokenizer.convert_tokens_to_ids(TURN_END)})

    @cached_property
    def _allowed_V(self) -> Tensor:
        """Made once: decoding the whole vocabulary takes as long as drawing many tokens."""
        return plain_ascii_mask(self._tokenizer, vocab_size=self._shape.vocab_size)


def check_refiner(folder: Path) -> None:
    """CheckpointError unless `folder` holds a complete Qwen2.5-VL and its tokenizer; reads no weights."""
    shape = refiner_shape(folder)
    refiner_rules(shape, _open_weights(folder))
    _check_tokenizer(folder, shape)
    read_sampling(folder)
    read_template(folder)


def _open_weights(folder: Path) -> Checkpoint:
    """The released files if they are there, whatever lies beside them; else the folder's only checkpoint."""
    released = (folder / name for name in _WEIGHTS)
    return open_checkpoint(next((file for file in released if file.is_file()), folder))


def _check_tokenizer(folder: Path, shape: RefinerShape) -> None:
    content = read_json(folder / _TOKENIZER, lacking="has no tokenizer")
    added = {token.get("content"): token.get("id") for token in content.get("added_tokens", [])}
    missing = [mark for mark in MARKS if mark not in added]
    if missing:
        raise CheckpointError(
            f"{folder / _TOKENIZER} is not that of a Qwen2.5-VL: it has no token {missing[0]}. "
            f"Put the one of {_SOURCE} there."
        )
    if added[IMAGE_TOKEN] != shape.image_token:
        raise CheckpointError(
            f"{folder}: the tokenizer's {IMAGE_TOKEN} is token {added[IMAGE_TOKEN]}, but config.json says "
            f"image_token_id {shape.image_token}: they belong to different models."
        )
