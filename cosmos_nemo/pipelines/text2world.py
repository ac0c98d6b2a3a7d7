"""Text2World: prompt -> text embedding -> latent -> frames."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.parallel.rank_zero import only_rank_zero
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.prompt import with_subject
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer


@dataclass(frozen=True)
class Video:
    """What was made: frames uint8 0..255 on the CPU, held by rank 0 alone, and the prompt that made them."""

    frames_THWC: Tensor | None
    fps: int
    prompt: str


class Text2World:
    """One video per call; every rank of the plan calls it with the same request."""

    def __init__(
        self, *, text_encoder: TextEncoder, denoise: Denoise, tokenizer: Tokenizer, world: ProcessGroup
    ) -> None:
        self.text_encoder, self.denoise, self.tokenizer = text_encoder, denoise, tokenizer
        self.world = world
        self.stages = (text_encoder, denoise, tokenizer)

    def __call__(self, request: Text2WorldRequest, *, on_step: OnStep | None = None) -> Video:
        prompt = with_subject(request.prompt, request.subject_name)
        with self.text_encoder as encode:
            prompt_BLD, negative_BLD = _embed(encode, prompt, request.negative_prompt)
        with self.denoise as denoise:
            latent_BCTHW = denoise(request, prompt_BLD, negative_BLD, on_step=on_step)
        frames_THWC = only_rank_zero(lambda: self._decode(latent_BCTHW), self.world)
        return Video(frames_THWC, request.fps, prompt)

    def _decode(self, latent_BCTHW: Tensor) -> Tensor:
        with self.tokenizer as tokenizer:
            return tokenizer.decode(latent_BCTHW)


def _embed(encode: TextEncoder, prompt: str, negative_prompt: str) -> tuple[Tensor, Tensor]:
    """Embeddings of both prompts; an empty negative prompt is all zeros, as in training's dropout."""
    if not negative_prompt:
        prompt_BLD = encode([prompt])
        return prompt_BLD, torch.zeros_like(prompt_BLD)
    both_BLD = encode([prompt, negative_prompt])
    return both_BLD[:1], both_BLD[1:]
