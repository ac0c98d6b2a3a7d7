"""Nano world videos in batches, from the package's own stages, and deliberate mistakes in making them.

Axes: N prompts, B videos of a batch, L text length, D text width, T frames, H rows, W columns, C colours.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.nano_given import GIVEN_MISTAKES, Told, decoded, denoiser_of, encoded_given, told
from cosmos_nemo.catalog import Task, find_card
from cosmos_nemo.cli import Invocation, parse_general, parse_world_interpolator
from cosmos_nemo.job import Job, prepare
from cosmos_nemo.job.stages import denoise_stage, text_encoder_stage, tokenizer_stage
from cosmos_nemo.models.common.dit.layers import KeyValue, Rope
from cosmos_nemo.models.common.dit.model import DiT, Positions
from cosmos_nemo.parallel.environment import Ranks
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.request import Text2WorldRequest, latent_shape
from cosmos_nemo.sampling.denoiser import Denoise, branches_needed, guided
from cosmos_nemo.sampling.noise import draw_noise
from cosmos_nemo.sampling.samplers import SAMPLERS
from cosmos_nemo.stages.prompt import with_subject
from cosmos_nemo.stages.text_encoder import TextEncoder

MODEL = "Cosmos-Nano-Text2World"
MISTAKES = ("none", "guidance_sign", "rope_axes", "text_shift", "sigmas_reversed")
MISTAKES_OF = {
    Task.TEXT2WORLD: MISTAKES,
    Task.VIDEO2WORLD: (*MISTAKES, *GIVEN_MISTAKES),
    Task.WORLD_INTERPOLATOR: (
        *("none", "rope_axes", "sigmas_reversed"),
        *(name for name in GIVEN_MISTAKES if name != "mask_off"),
        "last_wrong",
    ),
}
"""An interpolator reads no prompt, and its mask is always the same: mistakes with them would not show."""
SHIFT = 4
"""Tokens by which the mistake text_shift moves the mask: past the article, the colour and the shape."""

OnBatch = Callable[[int, int], None]
"""Called after each batch with the number of videos made, and of all."""


def nano_job(flags: Sequence[str], *, device: torch.device | None, model: str = MODEL) -> Job:
    """The job of `inference/general.py --model MODEL` with these flags, on one process.

    Or of `inference/world_interpolator.py`, which has the flags of files under other names. Its prompt, its
    path and its visual input are not used. device None: a GPU where there is one. Without the cache
    of text embeddings, so that the text encoder really runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        invocation = _invocation(model, list(flags), folder=Path(folder))
        job = prepare(invocation, ranks=Ranks(), environ={**os.environ, "COSMOS_NEMO_CACHE": ""})
    return job if device is None else replace(job, device=device)


def _invocation(model: str, flags: list[str], *, folder: Path) -> Invocation:
    task = find_card(model).task
    frames = folder / "unused.npy"
    numpy.save(frames, numpy.zeros((2, 16, 16, 3), numpy.uint8))
    common = ["--model", model, "--prompt", "unused", *flags]
    if task is Task.WORLD_INTERPOLATOR:
        common = [_RENAMED.get(name, name) + rest for name, rest in map(_split, common)]
        places = ["--video_save_folder", str(folder), "--video_save_name", "made.npy"]
        places += ["--input_image_or_video_path", str(frames)]
        network = (
            [] if any("--diffusion" in flag for flag in common) else ["--diffusion_transformer_dir", model]
        )
        return parse_world_interpolator([*network, "--disable_prompt_upsampler", *places, *common])
    given = ["--conditioned_image_or_video_path", str(frames)] if task is Task.VIDEO2WORLD else []
    return parse_general(["--video_save_path", str(folder / "made.npy"), *given, *common])


_RENAMED = {"--nemo_checkpoint": "--diffusion_transformer_dir", "--cosmos_assets_dir": "--checkpoint_dir"}


def _split(flag: str) -> tuple[str, str]:
    """A flag's name and what follows it in the same word."""
    name, equals, value = flag.partition("=")
    return name, equals + value


class Generator:
    """Makes many videos of one job's settings; a batch of one is what the pipeline makes, chunk or clip."""

    def __init__(self, job: Job, *, mistake: str = "none") -> None:
        assert mistake in MISTAKES_OF[job.card.task]
        self.job, self.mistake = job, mistake
        groups = start_alone(job.device)
        self.text_encoder = text_encoder_stage(job, groups)
        self.denoise = denoise_stage(job, groups)
        self.tokenizer = tokenizer_stage(job)

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        batch_size: int,
        given_NTHWC: Tensor | None = None,
        on_batch: OnBatch | None = None,
    ) -> Iterator[Tensor]:
        """The videos in the order of their prompts, each uint8 [T, H, W, C] on the CPU.

        given_NTHWC: uint8, of each the first ones, or an interpolator's first and last.
        """
        prompt_NLD, negative_1LD = self._texts(prompts)
        task = self.job.card.task
        with self.denoise as denoise, self.tokenizer as tokenizer:
            network = denoise.module
            assert isinstance(network, DiT)
            for start in range(0, len(prompts), batch_size):
                those = slice(start, start + batch_size)
                given = None
                if given_NTHWC is not None:
                    given = encoded_given(tokenizer, given_NTHWC[those], self.job, mistake=self.mistake)
                latent_BCTHW = self._latents(network, prompt_NLD[those], negative_1LD, seeds[those], given)
                for latent_CTHW in latent_BCTHW:
                    yield decoded(tokenizer, latent_CTHW[None], task=task)
                if on_batch is not None:
                    on_batch(min(start + batch_size, len(prompts)), len(prompts))

    def _texts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [N, L, D] of the prompts and [1, L, D] of the negative one; "" is zeros."""
        request = self.job.request
        whole = [with_subject(prompt, request.subject_name) for prompt in prompts]
        with self.text_encoder as stage:
            encode = partial(shifted, stage) if self.mistake == "text_shift" else stage
            prompt_NLD = encode(whole)
            negative = request.negative_prompt
            negative_1LD = encode([negative]) if negative else torch.zeros_like(prompt_NLD[:1])
        return prompt_NLD, negative_1LD

    @torch.inference_mode()
    def _latents(
        self,
        network: DiT,
        prompt_BLD: Tensor,
        negative_1LD: Tensor,
        seeds: Sequence[int],
        given_BCTHW: Tensor | None,
    ) -> Tensor:
        request, card = self.job.request, self.job.card
        shape = latent_shape(request, card)
        noise_BCTHW = torch.cat([draw_noise(shape, seed=seed) for seed in seeds]).to(self.job.device)
        frames = None
        if given_BCTHW is not None:
            frames = told(given_BCTHW, noise_BCTHW, card, mistake=self.mistake)
        place = swapped_axes if self.mistake == "rope_axes" else DiT.positions
        predict = _BatchedNetwork(
            network,
            guidance=-request.guidance if self.mistake == "guidance_sign" else request.guidance,
            positions=place(network, shape[2:], fps=request.fps),
            texts={"cond": prompt_BLD, "uncond": negative_1LD.expand_as(prompt_BLD)},
            frames=frames,
        )
        denoiser = denoiser_of(predict, frames, card)
        if self.mistake == "sigmas_reversed":
            return _sample_reversed(denoiser, noise_BCTHW, request) / card.sigma_data
        sampler = SAMPLERS[request.sampler]
        return sampler.sample(denoiser, noise_BCTHW, num_steps=request.num_steps) / card.sigma_data


class _BatchedNetwork:
    """(scaled x, noise level or levels of the frames) -> guided F of a batch; see stages/denoise.py."""

    def __init__(
        self,
        network: DiT,
        *,
        guidance: float,
        positions: Positions,
        texts: dict[str, Tensor],
        frames: Told | None,
    ) -> None:
        self.network, self.guidance, self.positions = network, guidance, positions
        self.mask_B1THW = None if frames is None else frames.mask_B1THW
        self.texts: list[list[KeyValue]] = [
            network.encode_text(texts[branch]) for branch in branches_needed(guidance)
        ]

    def __call__(self, x_BCTHW: Tensor, levels: Tensor) -> Tensor:
        modulation = self.network.modulate(levels.expand(len(x_BCTHW), *levels.shape))
        outputs = [
            self.network(
                x_BCTHW,
                modulation=modulation,
                text=text,
                positions=self.positions,
                given_mask_B1THW=self.mask_B1THW,
            )
            for text in self.texts
        ]
        return outputs[0] if len(outputs) == 1 else guided(outputs[0], outputs[1], self.guidance)


@torch.no_grad()
def shifted(stage: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """Mistake: the mask lies SHIFT tokens late. The encoder sees no beginning, and padding as text.

    Moving the embeddings alone would change nothing: the network attends to their rows as to a set.
    """
    stage(["makes the weights resident"])
    assert stage.module is not None
    tokens = stage._tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=stage.text_length,
        return_tensors="pt",
    )
    mask_BL = tokens.attention_mask.roll(SHIFT, dims=1).to(stage.device)
    hidden_BLD = stage.module(tokens.input_ids.to(stage.device), attention_mask=mask_BL).last_hidden_state
    return torch.where(mask_BL[:, :, None] == 1, hidden_BLD, 0)


def swapped_axes(network: DiT, latent_THW: tuple[int, int, int], *, fps: float) -> Positions:
    """Mistake: rotary angles as if frames were rows and rows frames; the learned table stays right."""
    right = network.positions(latent_THW, fps=fps)
    t, h, w = right.grid_THW
    turned = network.positions((h, t * network.shape.patch_size, latent_THW[2]), fps=fps).rope
    cos, sin = (rearrange(part, "(h t w) one b k -> (t h w) one b k", h=h, t=t, w=w) for part in turned)
    return right._replace(rope=Rope(cos.contiguous(), sin.contiguous()))


def _sample_reversed(denoiser: Denoise, noise_BCTHW: Tensor, request: Text2WorldRequest) -> Tensor:
    """Mistake: the same levels from the lowest to the highest. The package's samplers refuse them."""
    sampler = SAMPLERS[request.sampler]
    levels = [level for level in sampler.schedule(request.num_steps).flip(0).tolist() if level > 0]
    state = noise_BCTHW.double() * sampler.start_scale
    for now, then in pairwise(levels):
        clean = denoiser(state.float(), torch.tensor(now)).double()
        state = clean + then / now * (state - clean)
    return denoiser(state.float(), torch.tensor(levels[-1]))
