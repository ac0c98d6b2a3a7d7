"""Nano world videos drawn token by token in batches, and deliberate mistakes in drawing them.

Letters: N B videos, T latent frames, h w rows and columns of tokens, S tokens in raster order.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from einops import rearrange
from torch import Tensor

from cosmos_nemo.cli import parse_autoregressive
from cosmos_nemo.job import Job, prepare
from cosmos_nemo.job.stages import pipeline_of
from cosmos_nemo.models.discrete_tokenizer.fsq import codes_of, ids_of
from cosmos_nemo.models.token_transformer.model import TokenTransformer
from cosmos_nemo.models.token_transformer.positions import Positions, token_positions
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.pipelines.autoregressive import Autoregressive
from cosmos_nemo.request import AutoregressiveRequest
from cosmos_nemo.sampling.tokens import TokenSampling

MODEL = "Cosmos-Nano-Autoregressive"
MISTAKES = ("none", "rope_axes", "flattened", "digits_reversed", "given_reversed")
FLAT_TEMPERATURE = 5.0

OnBatch = Callable[[int, int], None]
"""Called after each batch with the number of videos made, and of all."""


def token_job(flags: Sequence[str], *, device: torch.device | None) -> Job:
    """The job of `inference/base.py --model MODEL` with these flags, on one process.

    Its path and its visual input are not used. device None: a GPU where there is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "unused.npy"
        numpy.save(frames, numpy.zeros((9, 128, 128, 3), numpy.uint8))
        own = ["--model", MODEL, "--input_image_or_video_path", str(frames), "--video_save_folder", folder]
        job = prepare(parse_autoregressive([*own, *flags]), ranks=Ranks(), environ=os.environ)
    return job if device is None else replace(job, device=device)


class TokenGenerator:
    """Goes on from given frames with one job's settings, several videos at a time."""

    def __init__(self, job: Job, *, mistake: str = "none") -> None:
        assert mistake in MISTAKES
        self.job, self.mistake = job, mistake
        pipeline = pipeline_of(job, start_alone(job.device))
        assert isinstance(pipeline, Autoregressive)
        self.tokenizer, self.token_generation = pipeline.discrete_tokenizer, pipeline.token_generation

    @property
    def levels(self) -> tuple[int, ...]:
        return self.tokenizer.shape.levels

    def __call__(
        self, given_NTHWC: Tensor, *, seeds: Sequence[int], batch_size: int, on_batch: OnBatch | None = None
    ) -> Iterator[Tensor]:
        """Videos uint8 [T, H, W, C] on the CPU that begin with the given frames, uint8, in their order."""
        if self.mistake == "given_reversed":
            given_NTHWC = given_NTHWC.flip(1)
        sampling, count = self.sampling(), len(given_NTHWC)
        with self.tokenizer as tokenizer, self.token_generation as generate:
            network = generate.module
            assert isinstance(network, TokenTransformer)
            with swapped_axes(network, is_wanted=self.mistake == "rope_axes"):
                for start in range(0, count, batch_size):
                    those = slice(start, start + batch_size)
                    prompt_BThw = self._told(tokenizer.encode(_video(given_NTHWC[those])))
                    drawn_BThw = generate(prompt_BThw, seeds=seeds[those], sampling=sampling)
                    for ids_Thw in self._meant(drawn_BThw):
                        yield tokenizer.decode(ids_Thw[None])
                    if on_batch is not None:
                        on_batch(min(start + batch_size, count), count)

    def through_tokenizer(self, clip_THWC: Tensor) -> Tensor:
        """A clip encoded and decoded, uint8 [T, H, W, C]."""
        with self.tokenizer as tokenizer:
            return tokenizer.decode(tokenizer.encode(_video(clip_THWC[None])))

    def sampling(self) -> TokenSampling:
        """The request's, but for the mistake in it."""
        request = self.job.request
        assert isinstance(request, AutoregressiveRequest)
        temperature = FLAT_TEMPERATURE if self.mistake == "flattened" else request.temperature
        return TokenSampling(temperature=temperature, top_p=request.top_p, top_k=request.top_k)

    def _told(self, ids_BThw: Tensor) -> Tensor:
        return digits_reversed(ids_BThw, self.levels) if self.mistake == "digits_reversed" else ids_BThw

    def _meant(self, ids_BThw: Tensor) -> Tensor:
        """What `_told` came from."""
        if self.mistake != "digits_reversed":
            return ids_BThw
        return digits_reversed(ids_BThw, self.levels[::-1])


def _video(frames_BTHWC: Tensor) -> Tensor:
    return rearrange(frames_BTHWC, "b t h w c -> b c t h w").float() / 127.5 - 1


def digits_reversed(ids_BThw: Tensor, levels: Sequence[int]) -> Tensor:
    """Mistake: the first channel's digit is taken for the highest. With the levels reversed, the inverse."""
    return ids_of(codes_of(ids_BThw, levels).flip(1), tuple(levels)[::-1])


@contextmanager
def swapped_axes(network: TokenTransformer, *, is_wanted: bool) -> Iterator[None]:
    """Mistake: rotary angles as if frames were rows and rows frames."""
    if not is_wanted:
        yield
        return
    network.positions = lambda length: swapped_positions(network, length)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del network.positions


def swapped_positions(network: TokenTransformer, length: int) -> Positions:
    """Those of `swapped_axes`, of the first tokens of a video."""
    t, h, w = network.shape.latent_THW
    turned = replace(network.shape, latent_THW=(h, t, w))
    wrong = token_positions(turned, t * h * w, device=network.device, dtype=network.dtype)
    cos, sin = (
        rearrange(part, "(h t w) one b k -> (t h w) one b k", h=h, t=t, w=w).contiguous()
        for part in (wrong.cos, wrong.sin)
    )
    return wrong._replace(cos=cos[:length], sin=sin[:length])
