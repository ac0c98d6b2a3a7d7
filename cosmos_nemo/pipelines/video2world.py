"""Video2World: the end of an image or video, and a prompt -> a video that goes on from there.

T frames, H W rows and columns. spec/predict1-diffusion.md, 5.1; spec/predict2-video2world.md, 4.5.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cosmos_nemo.catalog import Family, VideoLimits
from cosmos_nemo.parallel.rank_zero import only_rank_zero, rank_zero
from cosmos_nemo.pipelines.base import DiffusionPipeline, OnProgress, Video, reading_input, sample_names
from cosmos_nemo.request import Video2WorldRequest
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.stages.denoise import Condition
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.prompt import describe_image, refine_prompt
from cosmos_nemo.stages.prompt_refiner import PromptRefiner
from cosmos_nemo.stages.visual_input import cropped, read_last_frames, resized, to_pixels, unit_pixels

_NOISE_LEVELS = (0.001, 0.2, 0.5)
"""Of the given frames: of the first chunk, the second, and all others, which go on from generated ones.
Predict2's network sees given frames clean."""


@dataclass(frozen=True)
class Chunk:
    """A part of a video that the network makes at once."""

    num_frames: int
    """With the given ones, which stand first."""
    num_given: int
    noise_level: float
    seed: int
    is_first: bool


def chunks_of(request: Video2WorldRequest, limits: VideoLimits) -> list[Chunk]:
    """As many as the video needs: a single one, or all of the length that the weights were trained on."""
    length = limits.at_once(request.num_frames)
    assert request.num_overlap_frames < limits.num_frames, "a chunk must add something"
    chunks = [Chunk(length, request.num_input_frames, _NOISE_LEVELS[0], request.seed, is_first=True)]
    made = length
    while made < request.num_frames:
        level = _NOISE_LEVELS[min(len(chunks), len(_NOISE_LEVELS) - 1)]
        seed = (request.seed + len(chunks)) % 2**32
        chunks.append(Chunk(length, request.num_overlap_frames, level, seed, is_first=False))
        made += length - request.num_overlap_frames
    return chunks


class Video2World(DiffusionPipeline[Video2WorldRequest, ImageUpsampler | PromptRefiner]):
    """A video that begins with given frames."""

    def make(self, request: Video2WorldRequest, *, on_progress: OnProgress) -> Video | None:
        input_THWC = only_rank_zero(lambda: _read(request), self.ranks)
        prompt = rank_zero(lambda: self._prepare(request, input_THWC), self.ranks)
        texts = self.embed(prompt, request.negative_prompt)
        given_THWC, parts_THWC = input_THWC, list[Tensor]()
        chunks = chunks_of(request, self.denoise.card.video)
        for name, chunk in zip(sample_names("chunk", len(chunks)), chunks, strict=True):
            made_THWC = self._make_chunk(request, chunk, given_THWC, texts, on_progress(name))
            if made_THWC is not None:
                parts_THWC.append(made_THWC if not parts_THWC else made_THWC[chunk.num_given :])
                given_THWC = made_THWC[-request.num_overlap_frames :]
        return only_rank_zero(lambda: self._show(request, prompt, input_THWC, parts_THWC), self.ranks)

    def _prepare(self, request: Video2WorldRequest, input_THWC: Tensor | None) -> str:
        assert input_THWC is not None
        image_HWC, upsampler = input_THWC[-1], self.upsampler
        if isinstance(upsampler, PromptRefiner):
            return refine_prompt(request, image_HWC, text_guard=self.text_guard, refiner=upsampler)
        return describe_image(request, image_HWC, text_guard=self.text_guard, upsampler=upsampler)

    def _make_chunk(
        self,
        request: Video2WorldRequest,
        chunk: Chunk,
        given_THWC: Tensor | None,
        texts: tuple[Tensor, Tensor],
        on_step: OnStep | None,
    ) -> Tensor | None:
        """The chunk's frames, on the first rank, which alone has the given ones."""
        latent_BCTHW = rank_zero(lambda: self._encode(self._pixels(request, given_THWC, chunk)), self.ranks)
        condition = Condition(
            latent_BCTHW=latent_BCTHW,
            places=tuple(range(latent_BCTHW.shape[2])),
            noise_level=chunk.noise_level,
        )
        part = replace(request, num_frames=chunk.num_frames, seed=chunk.seed)
        with self.denoise as denoise:
            self.tokenizer.prefetch()
            made_BCTHW = denoise(part, *texts, condition=condition, on_step=on_step)
        return self.decode(made_BCTHW)

    def _pixels(self, request: Video2WorldRequest, given_THWC: Tensor | None, chunk: Chunk) -> Tensor:
        """The given frames as the tokenizer takes them: [1, 3, T, H, W], about -1..1."""
        assert given_THWC is not None
        size = {"height": request.height, "width": request.width}
        if not chunk.is_first:
            # The inverse of how they were made, which to_pixels is not quite: else chunks would grow darker.
            return unit_pixels(given_THWC)
        if self.denoise.card.network.family is Family.PREDICT2:
            with reading_input():
                return unit_pixels(cropped(given_THWC, **size))
        return to_pixels(given_THWC, **size)

    def _encode(self, pixels_BCTHW: Tensor) -> Tensor:
        with self.tokenizer as tokenizer:
            self.denoise.prefetch()
            return tokenizer.encode(pixels_BCTHW, as_image=False)

    def _show(
        self,
        request: Video2WorldRequest,
        prompt: str,
        input_THWC: Tensor | None,
        parts_THWC: list[Tensor],
    ) -> Video:
        assert input_THWC is not None
        frames_THWC = torch.cat(parts_THWC)[: request.num_frames]
        assert len(frames_THWC) == request.num_frames
        video = self.guarded(frames_THWC, prompt=prompt, fps=request.fps)
        if not request.keeps_input_size:
            return video
        _, height, width, _ = input_THWC.shape
        return replace(video, frames_THWC=resized(video.frames_THWC, height=height, width=width))


def _read(request: Video2WorldRequest) -> Tensor:
    with reading_input():
        return read_last_frames(request.visual_input, request.num_input_frames)
