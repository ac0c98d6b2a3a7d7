"""Text2World: prompt -> text embedding -> latent -> frames."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.parallel.rank_zero import only_rank_zero, rank_zero
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.guardrail.text_guard import TextGuard
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard
from cosmos_nemo.stages.prompt import prepare_prompt
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer


@dataclass(frozen=True)
class Video:
    """What was made, and the prompt that made it. Rank 0 alone holds it."""

    frames_THWC: Tensor
    """uint8 0..255 on the CPU."""
    fps: int
    prompt: str
    is_changed: bool = False
    """The video guard blurred faces."""


class Text2World:
    """One video per call; every rank of `ranks` calls it with the same request.

    Prompt models, tokenizer and guards run on the first of the ranks; what they raise reaches all.
    While a stage works, the next is prefetched if it is sure to be needed: a prompt may be blocked or long
    enough, and its embedding may be in the cache.
    """

    def __init__(
        self,
        *,
        text_guard: TextGuard | Skip,
        upsampler: PromptUpsampler | Skip,
        text_encoder: TextEncoder,
        denoise: Denoise,
        tokenizer: Tokenizer,
        video_guard: VideoGuard | Skip,
        ranks: ProcessGroup,
    ) -> None:
        self.text_guard, self.upsampler = text_guard, upsampler
        self.text_encoder, self.denoise, self.tokenizer = text_encoder, denoise, tokenizer
        self.video_guard, self.ranks = video_guard, ranks

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that are turned on, in the order in which they are first used."""
        order = (
            self.text_guard,
            self.upsampler,
            self.text_encoder,
            self.denoise,
            self.tokenizer,
            self.video_guard,
        )
        return tuple(stage for stage in order if isinstance(stage, Stage))

    def __call__(self, request: Text2WorldRequest, *, on_step: OnStep | None = None) -> Video | None:
        """The video, on the first rank; what a stage raises, Blocked or ItemError for one, on all."""
        try:
            return self._make(request, on_step=on_step)
        except BaseException:
            for stage in self.stages:  # one may have been prefetched, and is not entered any more
                stage.park()
            raise

    def _make(self, request: Text2WorldRequest, *, on_step: OnStep | None) -> Video | None:
        prompt = rank_zero(lambda: self._prepare(request), self.ranks)
        with self.text_encoder as encode:
            self.denoise.prefetch()
            prompt_BLD, negative_BLD = _embed(encode, prompt, request.negative_prompt)
        with self.denoise as denoise:
            self.tokenizer.prefetch()
            latent_BCTHW = denoise(request, prompt_BLD, negative_BLD, on_step=on_step)
        return only_rank_zero(lambda: self._show(latent_BCTHW, prompt, request.fps), self.ranks)

    def _prepare(self, request: Text2WorldRequest) -> str:
        return prepare_prompt(request, text_guard=self.text_guard, upsampler=self.upsampler)

    def _show(self, latent_BCTHW: Tensor, prompt: str, fps: int) -> Video:
        with self.tokenizer as tokenizer:
            self.video_guard.prefetch()
            frames_THWC = tokenizer.decode(latent_BCTHW)
        with self.video_guard as clean:
            cleaned_THWC = clean(frames_THWC)
        return Video(cleaned_THWC, fps, prompt, is_changed=cleaned_THWC is not frames_THWC)


def _embed(encode: TextEncoder, prompt: str, negative_prompt: str) -> tuple[Tensor, Tensor]:
    """Embeddings of both prompts; an empty negative prompt is all zeros, as in training's dropout."""
    if not negative_prompt:
        prompt_BLD = encode([prompt])
        return prompt_BLD, torch.zeros_like(prompt_BLD)
    both_BLD = encode([prompt, negative_prompt])
    return both_BLD[:1], both_BLD[1:]
