"""WorldInterpolator: frames of a video -> a video with more frames between them.

T frames, H W rows and columns. spec/predict1-diffusion.md, 5.3.
"""

from itertools import pairwise

import torch
from torch import Tensor

from cosmos_nemo.parallel.rank_zero import only_rank_zero, rank_zero
from cosmos_nemo.pipelines.base import DiffusionPipeline, OnProgress, Video, reading_input, sample_names
from cosmos_nemo.request import InterpolationRequest
from cosmos_nemo.stages.denoise import Condition
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.prompt import describe_image
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer
from cosmos_nemo.stages.visual_input import read_frames_at, read_last_frames, to_pixels, visual_facts


class WorldInterpolator(DiffusionPipeline[InterpolationRequest, ImageUpsampler]):
    """A clip for every two given frames that follow one another, joined where they meet.

    A clip's first frame is the first frame of a video to the tokenizer, its last frame an image: three latent
    frames for ten frames.
    """

    def make(self, request: InterpolationRequest, *, on_progress: OnProgress) -> Video | None:
        prompt = rank_zero(lambda: self._prepare(request), self.ranks)
        texts = self.embed(prompt, request.negative_prompt)
        pairs = rank_zero(lambda: self._encode(request), self.ranks).split(2, dim=2)
        latents = []
        with self.denoise as denoise:
            self.tokenizer.prefetch()
            for name, pair_BCTHW in zip(sample_names("clip", len(pairs)), pairs, strict=True):
                condition = Condition(
                    latent_BCTHW=pair_BCTHW, places=(0, -1), draws_noise=request.draws_noise
                )
                latents.append(denoise(request, *texts, condition=condition, on_step=on_progress(name)))
        return only_rank_zero(lambda: self._show(latents, prompt, request.fps), self.ranks)

    def _prepare(self, request: InterpolationRequest) -> str:
        last_HWC = None
        if not isinstance(self.upsampler, Skip):
            with reading_input():
                [last_HWC] = read_last_frames(request.visual_input, 1)
        return describe_image(request, last_HWC, text_guard=self.text_guard, upsampler=self.upsampler)

    def _encode(self, request: InterpolationRequest) -> Tensor:
        """Latents [1, C, 2 N, H, W] of N pairs, first and last frame by turns."""
        with reading_input():
            numbers = request.given_frames(visual_facts(request.visual_input).num_frames)
            frames_THWC = read_frames_at(request.visual_input, numbers)
        latents = []
        with self.tokenizer as tokenizer:
            self.denoise.prefetch()
            for pair_THWC in map(torch.stack, pairwise(frames_THWC)):
                pixels_BCTHW = to_pixels(pair_THWC, height=request.height, width=request.width)
                latents.append(tokenizer.encode(pixels_BCTHW[:, :, :1], as_image=False))
                latents.append(tokenizer.encode(pixels_BCTHW[:, :, 1:], as_image=True))
        return torch.cat(latents, dim=2)

    def _show(self, latents: list[Tensor], prompt: str, fps: int) -> Video:
        with self.tokenizer as tokenizer:
            self.video_guard.prefetch()
            clips = [_decode(tokenizer, latent_BCTHW) for latent_BCTHW in latents]
        frames_THWC = torch.cat([clips[0], *(clip_THWC[1:] for clip_THWC in clips[1:])])
        return self.guarded(frames_THWC, prompt=prompt, fps=fps)


def _decode(tokenizer: AnyTokenizer, latent_BCTHW: Tensor) -> Tensor:
    return torch.cat([tokenizer.decode(latent_BCTHW[:, :, :-1]), tokenizer.decode(latent_BCTHW[:, :, -1:])])
