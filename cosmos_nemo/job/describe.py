"""What a dry run prints of a job."""

from dataclasses import replace

from cosmos_nemo.job.job import Job
from cosmos_nemo.job.predicted import prediction_of
from cosmos_nemo.pipelines.video2world import chunks_of
from cosmos_nemo.request import (
    OFFLOADABLE,
    OFFLOADABLE_OF_TOKENS,
    AutoregressiveRequest,
    InterpolationRequest,
    Text2ImageRequest,
    Video2WorldRequest,
    VisualRequest,
    latent_shape,
)
from cosmos_nemo.sampling.samplers import SAMPLERS
from cosmos_nemo.stages.diffusion_decoder import DECODER_SAMPLERS
from cosmos_nemo.stages.records import past_lines, past_of

_NAMES = {
    "weights": "network",
    "discrete_tokenizer": "discrete tokenizer",
    "diffusion_decoder": "diffusion decoder",
    "tokenizer": "tokenizer",
    "text_encoder": "text encoder",
    "upsampler": "prompt upsampler",
    "guardrail": "guardrails",
    "text_guard": "text guard",
}


def describe(job: Job) -> str:
    """The requests, the plan and the files."""
    request = job.request
    where = (
        f"{len(job.requests)} {request.made}s{f' in {job.folder}' if job.folder is not None else ''}"
        if job.is_batch
        else f"to {request.video_path}"
    )
    lines = [
        f"{job.card.name}: {_size(job)}, seed {request.seed}, {where}",
        *_given(job),
        *_drawn(job),
        f"{job.plan.num_ranks} rank(s): {job.plan}; {computed_by(job)} in {str(job.dtype)[6:]}",
    ]
    for name in job.needs:
        path = job.files.found().get(name)
        lines.append(f"{_NAMES[name]}: {path or 'not here; a run would look for it on the hub'}")
    return "\n".join([*lines, *_memory(job), *_past(job), *remarks(job)])


def computed_by(job: Job) -> str:
    """The back end, and which network it computes in 8 bits."""
    said = f"back end {job.backend.name}"
    if job.setup.precision == "bf16":
        return said
    network = "diffusion network" if job.card.tokens is None else "diffusion decoder"
    return f"{said}, 8 bits in products and self attention of the {network},"


def _drawn(job: Job) -> list[str]:
    """What the networks do for a video."""
    if isinstance(job.request, AutoregressiveRequest):
        return _tokens(job, job.request)
    request = job.request
    _, _, frames, rows, columns = latent_shape(replace(request, num_frames=_at_once(job)), job.card)
    patch = job.card.network.patch_size
    calls = SAMPLERS[request.sampler].num_calls(request.num_steps)
    tokens = frames * (rows // patch) * (columns // patch)
    return [
        f"latent {frames} x {rows} x {columns}, {tokens:,} tokens; {request.sampler}, "
        f"{request.num_steps} steps, guidance {request.guidance:g}: "
        f"{calls * request.num_branches} network calls{_a_part(job)}"
    ]


def _tokens(job: Job, request: AutoregressiveRequest) -> list[str]:
    assert job.card.tokens is not None
    shape, tokenizer = job.card.tokens.network, job.card.tokens.tokenizer
    frames, rows, columns = shape.latent_THW
    given = ((request.num_input_frames - 1) // tokenizer.temporal_compression + 1) * rows * columns
    which = (
        f"top-k {request.top_k}"
        if request.top_k is not None
        else "all"
        if request.top_p is None
        else f"top-p {request.top_p:g}"
    )
    lines = [
        f"tokens {frames} x {rows} x {columns}: {given:,} given, {shape.num_video_tokens - given:,} drawn at "
        f"temperature {request.temperature:g}, {which}"
    ]
    if not job.setup.decodes_by_diffusion:
        return [*lines, "frames by the discrete tokenizer"]
    calls = DECODER_SAMPLERS[request.sampler].num_calls(request.num_steps)
    return [
        *lines,
        f"frames by the diffusion decoder: {request.sampler}, {request.num_steps} steps, guidance "
        f"{request.guidance:g}: {calls * request.num_branches} network calls",
    ]


def _size(job: Job) -> str:
    request = job.request
    pixels = f"{request.width} x {request.height}"
    if isinstance(request, Text2ImageRequest):
        return f"an image of {pixels}"
    return f"{_num_frames(job)} frames of {pixels} at {request.fps} fps"


def _at_once(job: Job) -> int:
    """The frames of a chunk, of a clip, or of a video that is neither."""
    return job.card.video.at_once(job.request.num_frames)


def _num_frames(job: Job) -> int:
    """Of the first video. Where it is not known how many clips an interpolation has, of one clip."""
    request = job.request
    if not isinstance(request, InterpolationRequest):
        return request.num_frames
    return (_num_clips(job, request) or 1) * (request.num_frames - 1) + 1


def _num_clips(job: Job, request: InterpolationRequest) -> int | None:
    """None where the visual input was not looked at."""
    found = job.visual_inputs.get(request.visual_input)
    if found is None:
        return request.num_frame_pairs
    return len(request.given_frames(found.facts.num_frames)) - 1


def _given(job: Job) -> list[str]:
    """What the video starts from, and what it is made of. Those of a batch start from different ones."""
    request = job.request
    if isinstance(request, InterpolationRequest):
        number = None if job.is_batch else _num_clips(job, request)
        clips = "clips" if number is None else "1 clip" if number == 1 else f"{number} clips"
        return [
            f"{clips} of {request.num_frames} frames, each between two frames of {_start(job)} that are "
            f"{request.frame_stride} apart, from its frame {request.frame_index_start}"
        ]
    if isinstance(request, AutoregressiveRequest):
        return [f"goes on from {_last(request.num_input_frames)} of {_start(job)}"]
    if not isinstance(request, Video2WorldRequest):
        return []
    lines = [f"goes on from {_last(request.num_input_frames)} of {_start(job)}"]
    chunks = chunks_of(request, job.card.video)
    if len(chunks) > 1:
        lines.append(
            f"{len(chunks)} chunks of {chunks[0].num_frames} frames, each of which goes on from "
            f"{_last(request.num_overlap_frames)} of the one before"
        )
    return lines


def _start(job: Job) -> str:
    assert isinstance(job.request, VisualRequest)
    return "its visual input" if job.is_batch else str(job.request.visual_input)


def _last(num_frames: int) -> str:
    return "the last frame" if num_frames == 1 else f"the last {num_frames} frames"


def _a_part(job: Job) -> str:
    if isinstance(job.request, InterpolationRequest):
        return " a clip"
    return " a chunk" if _at_once(job) < job.request.num_frames else ""


def _memory(job: Job) -> list[str]:
    predicted, num_ranks = prediction_of(job), job.plan.num_ranks
    parts = [f"{stage.name} {_gib(stage.weights)} + {_gib(stage.work)}" for stage in predicted.stages]
    names = OFFLOADABLE if job.card.tokens is None else OFFLOADABLE_OF_TOKENS
    offloaded = ", ".join(name for name in names if name in job.setup.offload) or "nothing"
    whose = f", all {num_ranks} ranks together," if num_ranks > 1 else ""
    return [
        f"predicted on GPUs, in GiB: {_gib(predicted.peak)} at the peak of GPU 0, {_gib(predicted.host)} of "
        f"host memory{whose} for what is offloaded ({offloaded})",
        f"weights + work of each: {', '.join(parts)}",
    ]


def _past(job: Job) -> list[str]:
    """Of a batch whose models are all here: what a video is made of tells whether it is there already."""
    if not job.is_batch or any(name not in job.files.found() for name in job.needs):
        return []
    pasts = [past_of(request.video_path, job.item_of(request)) for request in job.requests]
    return past_lines(pasts, job.folder, made=job.request.made)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"


def remarks(job: Job) -> list[str]:
    """What a person may not have meant, a line each."""
    lines = [f"--batch_input_path {line}" for line in job.bad_lines]
    if job.passed_over:
        lines.append(
            f"fields of the batch file that this model makes nothing of: {', '.join(job.passed_over)}"
        )
    trained, frames = job.card.video.num_frames, job.request.num_frames
    if _at_once(job) != trained:
        lines.append(
            f"{job.card.name} was trained on {trained} frames: with --num_video_frames {frames} its videos "
            "may be worse"
        )
    return lines
