"""The upsampler of image-conditioned models: Pixtral describes the video that a frame belongs to.

H W are rows and columns in pixels, C colors.
"""

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import LanguageShape, VisionShape
from cosmos_nemo.checkpoint.pixtral_names import pixtral_rules
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.language_model import answer_tokens
from cosmos_nemo.stages.pixtral_image import fitted_size, pixel_values
from cosmos_nemo.stages.pixtral_model import build_pixtral
from cosmos_nemo.stages.prompt_upsampler import UpsamplerError
from cosmos_nemo.stages.upsampled_text import clean_answer

logger = logging.getLogger(__name__)

_INSTRUCTION = (
    "Describe the video that this frame is taken from, in one paragraph of no more than 150 words. "
    "Say only what is there and what it does: no filler words, nothing about the style, and nothing "
    "that cannot be seen in the video."
)

_TEMPERATURE = 0.01
_TOP_P = 0.9
_LONGEST_ANSWER = 400
_SHORTEST_ROOM = 32
"""Tokens: a description that is cut after fewer says nothing."""

_START, _END, _TURN_START, _TURN_END = "<s>", "</s>", "[INST]", "[/INST]"
_PATCH, _ROW_END, _IMAGE_END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
_MARKS = (_START, _END, _TURN_START, _TURN_END, _PATCH, _ROW_END, _IMAGE_END)

_RELEASED_FILES = ("model.pt", "consolidated.safetensors")
_TOKENIZER = "tokenizer.json"
_TOKENIZER_SOURCE = "mistral-community/pixtral-12b"
_TOKENIZER_OF_MISTRAL = "tekken.json"

_WITHOUT = "write the prompt yourself and pass --disable_prompt_upsampler"


class ImageUpsampler(Stage):
    """A language model that sees one image and knows one task; for one rank alone, it talks to no other.

    Entering reads no weights yet: they become resident with the first image.
    """

    name: ClassVar[str] = "upsampler"

    def __init__(
        self,
        *,
        shape: LanguageShape,
        vision: VisionShape,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        offload: bool = False,
        seed: int = 0,
    ) -> None:
        """folder: the weights in any of pixtral_names' layouts, and tokenizer.json."""
        super().__init__(device=device, offload=offload)
        self.shape, self.vision, self.folder, self.dtype = shape, vision, folder, dtype
        self.seed = seed

    def __call__(self, image_HWC: Tensor) -> str:
        """What the image (uint8 0..255, of any size) shows, in one line.

        ItemError if the answer is empty or the image leaves no room for one, UpsamplerError if the logits are
        not finite.
        """
        tokens = self._chat_tokens(*image_HWC.shape[:2])
        room = min(_LONGEST_ANSWER, self.shape.max_length - len(tokens))
        if room < _SHORTEST_ROOM:
            raise ItemError(
                f"The image and the request have {len(tokens):,} tokens of the {self.shape.max_length:,} "
                "that the upsampler reads and writes together, which leaves no room for a description. "
                f"Scale the image down, or {_WITHOUT}."
            )
        super().reside()
        return self._cleaned(self._answer(pixel_values(image_HWC, self.vision), tokens, room=room))

    def reside(self) -> None:
        """Nothing yet: only an image that is to be described needs the weights."""

    def build(self) -> nn.Module:
        return build_pixtral(
            self.shape,
            self.vision,
            checkpoint=_open_weights(self.folder),
            image_token=self._tokenizer.convert_tokens_to_ids(_PATCH),
            device=self.device,
            dtype=self.dtype,
        )

    def _chat_tokens(self, height: int, width: int) -> list[int]:
        """The user's turn of a chat, a token for each patch first, in which the upsampler speaks next."""
        rows, columns = (side // self.vision.patch_size for side in fitted_size(height, width, self.vision))
        image = _ROW_END.join([_PATCH * columns] * rows) + _IMAGE_END
        text = f"{_START}{_TURN_START}{image}\n{_INSTRUCTION}{_TURN_END}"
        tokens = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if max(tokens) >= self.shape.vocab_size:
            raise CheckpointError(
                f"{self.folder}: the tokenizer makes token {max(tokens)}, but the model has "
                f"{self.shape.vocab_size}: they belong to different models."
            )
        return list(tokens)

    def _answer(self, pixels_1CHW: Tensor, tokens: list[int], *, room: int) -> str:
        end = self._tokenizer.convert_tokens_to_ids(_END)
        try:
            drawn = answer_tokens(
                self.module,
                tokens,
                pixels_1CHW=pixels_1CHW,
                num_tokens=room,
                end_token=end,
                temperature=_TEMPERATURE,
                top_p=_TOP_P,
                seed=self.seed,
            )
        except FloatingPointError as error:
            raise UpsamplerError(
                f"The prompt upsampler {self.folder} cannot answer: its {error}. "
                f"Check its files, or {_WITHOUT}."
            ) from error
        if drawn[-1] != end:
            logger.warning("The description of the image is cut: it has not ended after %d tokens.", room)
        return str(
            self._tokenizer.decode(drawn, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _cleaned(self, answer: str) -> str:
        description = clean_answer(answer)
        if not description:
            raise ItemError(
                f"The prompt upsampler {self.folder} answered with no text (but {answer!r}). "
                f"Take another image, or {_WITHOUT}."
            )
        return description

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        _check_tokenizer(self.folder)
        # From the file alone: settings beside it, a model's among them, would change how text is cut.
        return PreTrainedTokenizerFast(
            tokenizer_file=str(self.folder / _TOKENIZER), bos_token=_START, eos_token=_END
        )


def check_image_upsampler(folder: Path, shape: LanguageShape, vision: VisionShape) -> None:
    """CheckpointError unless `folder` holds a Pixtral of those shapes and its tokenizer; reads no weights."""
    pixtral_rules(shape, vision, _open_weights(folder))
    _check_tokenizer(folder)


def _open_weights(folder: Path) -> Checkpoint:
    """The released file if there is one, whatever lies beside it; else the folder's only checkpoint."""
    released = (folder / name for name in _RELEASED_FILES)
    return open_checkpoint(next((file for file in released if file.is_file()), folder))


def _check_tokenizer(folder: Path) -> None:
    file = folder / _TOKENIZER
    source = f"put {_TOKENIZER} of the hub repository {_TOKENIZER_SOURCE} there"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = (
            f" ({_TOKENIZER_OF_MISTRAL} is not read)" if (folder / _TOKENIZER_OF_MISTRAL).is_file() else ""
        )
        raise CheckpointError(f"{folder} has no {_TOKENIZER}{beside}: {source}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}): {source}.") from error
    added = content.get("added_tokens", []) if isinstance(content, dict) else []
    missing = [mark for mark in _MARKS if mark not in {token.get("content") for token in added}]
    if missing:
        raise CheckpointError(f"{file} is not Pixtral's: it has no token {missing[0]}. Instead, {source}.")
