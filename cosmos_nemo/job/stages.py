"""The stages of a job, on this rank."""

from typing import Any

import torch

from cosmos_nemo.catalog import Family, Task, TokenModel
from cosmos_nemo.job.job import Job
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.pipelines.autoregressive import Autoregressive
from cosmos_nemo.pipelines.base import DiffusionPipeline, Pipeline
from cosmos_nemo.pipelines.text2world import Text2World
from cosmos_nemo.pipelines.video2world import Video2World
from cosmos_nemo.pipelines.world_interpolator import WorldInterpolator
from cosmos_nemo.request import OFFLOADABLE, OFFLOADABLE_OF_TOKENS
from cosmos_nemo.stages.denoise import Denoise
from cosmos_nemo.stages.diffusion_decoder import DiffusionDecoder
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.stages.guardrail import WORD_LISTS
from cosmos_nemo.stages.guardrail.text_guard import TextGuard
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard
from cosmos_nemo.stages.image_upsampler import ImageUpsampler
from cosmos_nemo.stages.prompt_refiner import PromptRefiner
from cosmos_nemo.stages.prompt_upsampler import PromptUpsampler
from cosmos_nemo.stages.skip import Skip
from cosmos_nemo.stages.text_cache import TextCache
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.token_generation import TokenGeneration
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.tokenizer_choice import AnyTokenizer, tokenizer_for

_DIFFUSION: dict[Task, type[DiffusionPipeline[Any, Any]]] = {
    Task.TEXT2WORLD: Text2World,
    Task.VIDEO2WORLD: Video2World,
    Task.WORLD_INTERPOLATOR: WorldInterpolator,
    Task.TEXT2IMAGE: Text2World,
}


def pipeline_of(job: Job, groups: Groups) -> Pipeline[Any]:
    """The pipeline of the card's task, with all its stages; nothing is read yet."""
    if job.card.tokens is not None:
        return _autoregressive(job, job.card.tokens, groups)
    return _DIFFUSION[job.card.task](
        text_guard=text_guard_stage(job),
        upsampler=upsampler_stage(job),
        text_encoder=text_encoder_stage(job, groups),
        denoise=denoise_stage(job, groups),
        tokenizer=tokenizer_stage(job),
        video_guard=video_guard_stage(job),
        ranks=groups.replica,
    )


def _autoregressive(job: Job, tokens: TokenModel, groups: Groups) -> Autoregressive:
    files, offload = job.files, job.setup.offload
    assert files.discrete_tokenizer is not None and files.weights is not None
    common: dict[str, Any] = {"device": job.device, "dtype": job.dtype, "prefetches": _prefetches(job)}
    return Autoregressive(
        discrete_tokenizer=DiscreteTokenizerStage(
            shape=tokens.tokenizer,
            folder=files.discrete_tokenizer,
            parts=("encoder",) if job.setup.decodes_by_diffusion else ("encoder", "decoder"),
            offload="tokenizer" in offload,
            **common,
        ),
        token_generation=TokenGeneration(
            shape=tokens.network,
            checkpoint=files.weights,
            groups=groups,
            backend=job.backend,
            offload="token_generation" in offload,
            **common,
        ),
        decoder=_decoder_stage(job, groups) if job.setup.decodes_by_diffusion else None,
        tokenizer=_frames_stage(job) if job.setup.decodes_by_diffusion else None,
        video_guard=video_guard_stage(job),
        ranks=groups.replica,
    )


def _decoder_stage(job: Job, groups: Groups) -> DiffusionDecoder:
    assert job.files.diffusion_decoder is not None
    return DiffusionDecoder(
        shape=job.card.network,
        checkpoint=job.files.diffusion_decoder,
        groups=groups,
        backend=job.backend,
        device=job.device,
        dtype=job.dtype,
        rope_dtype=getattr(torch, job.setup.rope_dtype),
        offload="diffusion_decoder" in job.setup.offload,
        prefetches=_prefetches(job),
    )


def _frames_stage(job: Job) -> Tokenizer:
    """What makes frames of the diffusion decoder's latents."""
    stage = tokenizer_stage(job)
    assert isinstance(stage, Tokenizer)
    return stage


def text_guard_stage(job: Job) -> TextGuard | Skip:
    if not job.has_guardrails:
        return Skip()
    assert job.files.guardrail is not None and job.files.text_guard is not None
    return TextGuard(
        word_lists=job.files.guardrail / WORD_LISTS,
        folder=job.files.text_guard,
        device=job.device,
        dtype=job.dtype,
        offload="guardrails" in job.setup.offload,
    )


def upsampler_stage(job: Job) -> PromptUpsampler | ImageUpsampler | PromptRefiner | Skip:
    if not job.setup.upsamples:
        return Skip()
    assert job.files.upsampler is not None
    common: dict[str, Any] = {
        "folder": job.files.upsampler,
        "device": job.device,
        "dtype": job.dtype,
        "offload": "prompt_upsampler" in job.setup.offload,
    }
    if job.card.network.family is Family.PREDICT2:
        return PromptRefiner(**common)
    if job.card.task is Task.TEXT2WORLD:
        return PromptUpsampler(**common, shape=job.card.upsampler, word_limit=job.setup.word_limit)
    return ImageUpsampler(**common, shape=job.card.upsampler, vision=job.card.vision)


def text_encoder_stage(job: Job, groups: Groups) -> TextEncoder:
    assert job.files.text_encoder is not None
    return TextEncoder(
        folder=job.files.text_encoder,
        text_length=job.card.network.text_length,
        text_dim=job.card.network.text_dim,
        device=job.device,
        dtype=job.text_encoder_dtype,
        offload="text_encoder" in job.setup.offload,
        group=groups.replica,
        cache=TextCache(job.text_cache) if job.text_cache is not None else None,
    )


def denoise_stage(job: Job, groups: Groups) -> Denoise:
    assert job.files.weights is not None
    return Denoise(
        card=job.card,
        checkpoint=job.files.weights,
        groups=groups,
        backend=job.backend,
        device=job.device,
        dtype=job.dtype,
        rope_dtype=getattr(torch, job.setup.rope_dtype),
        averaged=job.setup.averaged,
        offload="denoise" in job.setup.offload,
        prefetches=_prefetches(job),
    )


def tokenizer_stage(job: Job) -> AnyTokenizer:
    assert job.files.tokenizer is not None
    return tokenizer_for(
        job.card.tokenizer,
        folder=job.files.tokenizer,
        device=job.device,
        dtype=job.dtype,
        offload="tokenizer" in job.setup.offload,
        prefetches=_prefetches(job),
        parts=("encoder", "decoder") if job.card.starts_from_frames else ("decoder",),
    )


def video_guard_stage(job: Job) -> VideoGuard | Skip:
    if not job.has_guardrails:
        return Skip()
    assert job.files.guardrail is not None
    return VideoGuard(
        folder=job.files.guardrail,
        device=job.device,
        offload="guardrails" in job.setup.offload,
        prefetches=_prefetches(job),
    )


def _prefetches(job: Job) -> bool:
    """Not where everything that runs is offloaded: there one model at a time is to be on the device."""
    runs = set(OFFLOADABLE if job.card.tokens is None else OFFLOADABLE_OF_TOKENS)
    if not job.has_guardrails:
        runs.remove("guardrails")
    if not job.setup.upsamples:
        runs.discard("prompt_upsampler")
    if not job.setup.decodes_by_diffusion:
        runs.discard("diffusion_decoder")
    return not runs <= job.setup.offload
