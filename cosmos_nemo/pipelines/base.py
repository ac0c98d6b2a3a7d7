"""What all pipelines have in common: their stages, the ranks they run on, and how a failure ends."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.parallel.rank_zero import everywhere, on_all, only_rank_zero
from cosmos_nemo.request import RequestError, Text2WorldRequest
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.guardrail.text_guard import TextGuard
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.prompt_refiner import PromptRefiner
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer
from cosmos_nemo.stages.visual_input import VisualInputError

logger = logging.getLogger(__name__)

OnProgress = Callable[[str], OnStep | None]
"""Given what is done, "denoise" or "denoise chunk 2 of 3" or DRAWING, what to call at its network calls."""
DRAWING = "draw tokens"
RequestT = TypeVar("RequestT", bound=Text2WorldRequest)
UpsamplerT = TypeVar("UpsamplerT", bound=PromptUpsampler | ImageUpsampler | PromptRefiner)


@dataclass(frozen=True)
class Video:
    """What was made, and the prompt that made it. Rank 0 alone holds it."""

    frames_THWC: Tensor
    """uint8 0..255 on the CPU."""
    fps: int
    prompt: str
    is_changed: bool = False
    """The video guard blurred faces."""


def sample_names(kind: str, count: int) -> list[str]:
    """For OnProgress, of the samples of one video."""
    if count == 1:
        return ["denoise"]
    return [f"denoise {kind} {number} of {count}" for number in range(1, count + 1)]


@contextmanager
def reading_input() -> Iterator[None]:
    """ItemError for a visual input that was gone, or another one, when its turn came."""
    try:
        yield
    except (VisualInputError, RequestError) as error:
        raise ItemError(str(error)) from error


class Pipeline(Generic[RequestT]):
    """One video per call; every rank of `ranks` calls it with the same request.

    Prompt models, encoders and guards run on the first of the ranks; what they raise reaches all.
    """

    def __init__(self, *, video_guard: VideoGuard | Skip, ranks: ProcessGroup) -> None:
        self.video_guard, self.ranks = video_guard, ranks

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that are turned on, in the order in which they are first used."""
        raise NotImplementedError(f"{type(self).__name__}.stages")

    def __call__(self, request: RequestT, *, on_progress: OnProgress = lambda name: None) -> Video | None:
        """The video, on the first rank; what a stage raises, Blocked or ItemError for one, on all.

        on_progress: asked for a callback for every sample that is drawn.
        """
        with self._parked_on_failure():
            return self.make(request, on_progress=on_progress)

    def ahead(self, requests: Sequence[RequestT], *, on_progress: OnProgress = lambda name: None) -> None:
        """Does for several requests together what can be done so; each is called for afterwards."""

    def make(self, request: RequestT, *, on_progress: OnProgress) -> Video | None:
        raise NotImplementedError(f"{type(self).__name__}.make")

    def guarded(self, frames_THWC: Tensor, *, prompt: str, fps: int) -> Video:
        """The frames as a video that the guard passes; for the first rank alone."""
        with self.video_guard as clean:
            cleaned_THWC = clean(frames_THWC)
        return Video(cleaned_THWC, fps, prompt, is_changed=cleaned_THWC is not frames_THWC)

    @contextmanager
    def _parked_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for stage in self.stages:  # one may have been prefetched, and is not entered any more
                stage.park()
            raise


def decode_latents(
    tokenizer: AnyTokenizer,
    latents: Sequence[Tensor],
    ranks: ProcessGroup,
    *,
    following: Stage | Skip | None = None,
) -> list[Tensor | None]:
    """Each latent's frames, uint8 [T, H, W, 3] on the first rank's CPU, and None elsewhere.

    Every rank has the latents; several ranks decode one together where each gets enough frames of it, not
    too many, and all have the memory. What loading raises reaches all of them, and so does what the first one
    raises that decodes alone; of ranks that decode together one that fails ends the job, as in the network's
    calls.

    following: a stage that is sure to be needed then, prefetched meanwhile on the first rank.
    """
    counts = [tokenizer.ranks_for(latent_BCTHW, ranks) for latent_BCTHW in latents]
    if max(counts) > 1:
        has_room = all(tokenizer.has_room(latent_BCTHW, ranks) for latent_BCTHW in latents)
        if not on_all(has_room, ranks, tokenizer.device):
            logger.info("one rank decodes the video: together not every rank's GPU has the memory")
            counts = [1] * len(latents)
    if max(counts) == 1:
        if ranks.rank() > 0:
            tokenizer.park()  # it may have been prefetched
        alone = only_rank_zero(lambda: _decoded(tokenizer, latents, following), ranks)
        return [None] * len(latents) if alone is None else list(alone)
    with ExitStack() as stack:
        takes_part = ranks.rank() < max(counts)
        if not takes_part:
            tokenizer.park()
        everywhere(lambda: stack.enter_context(tokenizer) if takes_part else None, ranks)
        if following is not None and ranks.rank() == 0:
            following.prefetch()
        return [
            tokenizer.decode_together(latent_BCTHW, ranks) if ranks.rank() < count else None
            for latent_BCTHW, count in zip(latents, counts, strict=True)
        ]


def _decoded(
    tokenizer: AnyTokenizer, latents: Sequence[Tensor], following: Stage | Skip | None
) -> list[Tensor]:
    with tokenizer:
        if following is not None:
            following.prefetch()
        return [tokenizer.decode(latent_BCTHW) for latent_BCTHW in latents]


class DiffusionPipeline(Pipeline[RequestT], Generic[RequestT, UpsamplerT]):
    """From a prompt, in the end, to a latent that is denoised.

    While a stage works, the next is prefetched if it is sure to be needed: a prompt may be blocked or long
    enough, and its embedding may be in the cache.
    """

    def __init__(
        self,
        *,
        text_guard: TextGuard | Skip,
        upsampler: UpsamplerT | Skip,
        text_encoder: TextEncoder,
        denoise: Denoise,
        tokenizer: AnyTokenizer,
        video_guard: VideoGuard | Skip,
        ranks: ProcessGroup,
    ) -> None:
        super().__init__(video_guard=video_guard, ranks=ranks)
        self.text_guard, self.upsampler = text_guard, upsampler
        self.text_encoder, self.denoise, self.tokenizer = text_encoder, denoise, tokenizer

    @property
    def stages(self) -> tuple[Stage, ...]:
        order: tuple[Any, ...] = (
            self.text_guard,
            self.upsampler,
            self.text_encoder,
            self.denoise,
            self.tokenizer,
            self.video_guard,
        )
        return tuple(stage for stage in order if isinstance(stage, Stage))

    def decode(self, latent_BCTHW: Tensor, *, following: Stage | Skip | None = None) -> Tensor | None:
        """decode_latents of one."""
        [frames_THWC] = decode_latents(self.tokenizer, [latent_BCTHW], self.ranks, following=following)
        return frames_THWC

    def embed(self, prompt: str, negative_prompt: str) -> tuple[Tensor, Tensor]:
        """Embeddings of both prompts; an empty negative prompt is all zeros, as in training's dropout."""
        with self.text_encoder as encode:
            self.denoise.prefetch()
            if not negative_prompt:
                prompt_BLD = encode([prompt])
                return prompt_BLD, torch.zeros_like(prompt_BLD)
            both_BLD = encode([prompt, negative_prompt])
            return both_BLD[:1], both_BLD[1:]
