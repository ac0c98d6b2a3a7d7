"""Autoregressive: the end of an image or video -> tokens -> more tokens -> frames.

T h w frames, rows and columns of tokens; T H W those of the video. spec/predict1-autoregressive.md, 0.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.parallel.rank_zero import only_rank_zero, rank_zero
from cosmos_nemo.pipelines.base import (
    DRAWING,
    OnProgress,
    Pipeline,
    Video,
    decode_latents,
    reading_input,
)
from cosmos_nemo.request import AutoregressiveRequest
from cosmos_nemo.sampling.token_report import NotFiniteLogits
from cosmos_nemo.sampling.tokens import TokenSampling
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.decoder_windows import assemble
from cosmos_nemo.stages.diffusion_decoder import DiffusionDecoder
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.parked import RESERVE
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.stages.token_generation import LogitsError, TokenGeneration
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.visual_input import cropped_pixels, read_last_frames


class Autoregressive(Pipeline[AutoregressiveRequest]):
    """A video whose tokens begin with those of given frames; no prompt is read.

    decoder and tokenizer are None where the discrete tokenizer makes the frames. While a stage works, the
    next is prefetched: all are needed for every video.
    """

    def __init__(
        self,
        *,
        discrete_tokenizer: DiscreteTokenizerStage,
        token_generation: TokenGeneration,
        decoder: DiffusionDecoder | None,
        tokenizer: Tokenizer | None,
        video_guard: VideoGuard | Skip,
        ranks: ProcessGroup,
    ) -> None:
        super().__init__(video_guard=video_guard, ranks=ranks)
        assert (decoder is None) == (tokenizer is None)
        self.discrete_tokenizer, self.token_generation = discrete_tokenizer, token_generation
        self.decoder, self.tokenizer = decoder, tokenizer
        self._drawn: dict[Path, Tensor] = {}
        """Tokens of requests that are still to be called for, by where their videos go."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        order = (
            self.discrete_tokenizer,
            self.token_generation,
            self.decoder,
            self.tokenizer,
            self.video_guard,
        )
        return tuple(stage for stage in order if isinstance(stage, Stage))

    def ahead(
        self, requests: Sequence[AutoregressiveRequest], *, on_progress: OnProgress = lambda name: None
    ) -> None:
        """Draws the tokens of all these videos together. One that cannot be read is left to its own call."""
        with self._parked_on_failure():
            prompts = {}
            for request in requests:
                try:
                    prompts[request.video_path] = rank_zero(partial(self._encode, request), self.ranks)
                except ItemError:
                    continue
            those = [request for request in requests if request.video_path in prompts]
            if those:
                ids_BThw = self._draw(those, torch.cat(list(prompts.values())), on_progress=on_progress)
                self._drawn = {
                    request.video_path: ids_Thw[None]
                    for request, ids_Thw in zip(those, ids_BThw, strict=True)
                }

    def make(self, request: AutoregressiveRequest, *, on_progress: OnProgress) -> Video | None:
        ids_BThw = self._drawn.pop(request.video_path, None)
        if ids_BThw is None:
            prompt_BThw = rank_zero(lambda: self._encode(request), self.ranks)
            ids_BThw = self._draw([request], prompt_BThw, on_progress=on_progress)
        if self.decoder is None:
            return only_rank_zero(lambda: self._show(ids_BThw, request.fps), self.ranks)
        assert self.tokenizer is not None
        with self.decoder as decode:
            self.tokenizer.prefetch()
            latents = decode(
                ids_BThw,
                seed=request.seed,
                guidance=request.guidance,
                sampler=request.sampler,
                num_steps=request.num_steps,
                on_step=on_progress("decode"),
            )
        windows = decode_latents(self.tokenizer, latents, self.ranks, following=self.video_guard)
        return only_rank_zero(lambda: self._show_decoded(windows, ids_BThw.shape[1], request.fps), self.ranks)

    def _encode(self, request: AutoregressiveRequest) -> Tensor:
        """The given frames' ids, [1, 1 or 2, h, w]."""
        with reading_input():
            frames_THWC = read_last_frames(request.visual_input, request.num_input_frames)
            pixels_BCTHW = cropped_pixels(frames_THWC, height=request.height, width=request.width)
        with self.discrete_tokenizer as tokenizer:
            self.token_generation.prefetch()
            return tokenizer.encode(pixels_BCTHW)

    def _draw(
        self, requests: Sequence[AutoregressiveRequest], prompt_BThw: Tensor, *, on_progress: OnProgress
    ) -> Tensor:
        """All tokens of the videos, the given ones first; every rank has them.

        LogitsError, which names the video, if the network's logits are NaN or infinite.
        """
        first = requests[0]
        sampling = TokenSampling(temperature=first.temperature, top_p=first.top_p, top_k=first.top_k)
        following = self.discrete_tokenizer if self.decoder is None else self.decoder
        with self.token_generation as generate:
            following.prefetch(reserve=max(RESERVE, generate.work_bytes(len(requests))))
            try:
                return generate(
                    prompt_BThw,
                    sampling=sampling,
                    seeds=[request.seed for request in requests],
                    on_step=on_progress(DRAWING),
                )
            except NotFiniteLogits as error:
                what = generate.sentence(error, num_given=prompt_BThw[0].numel())
                path = requests[error.video].video_path
                raise LogitsError(f"{path} cannot be made: {what}") from error

    def _show(self, ids_BThw: Tensor, fps: int) -> Video:
        with self.discrete_tokenizer as tokenizer:
            self.video_guard.prefetch()
            frames_THWC = tokenizer.decode(ids_BThw)
        return self.guarded(frames_THWC, prompt="", fps=fps)

    def _show_decoded(self, windows: Sequence[Tensor | None], latent_frames: int, fps: int) -> Video:
        windows_THWC = [frames_THWC for frames_THWC in windows if frames_THWC is not None]
        return self.guarded(assemble(windows_THWC, latent_frames=latent_frames), prompt="", fps=fps)
