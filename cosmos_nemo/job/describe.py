"""What a dry run prints of a job."""

from cosmos_nemo.job.job import Job
from cosmos_nemo.memory import predict
from cosmos_nemo.request import OFFLOADABLE, latent_shape
from cosmos_nemo.sampling.samplers import SAMPLERS
from cosmos_nemo.stages.records import past_lines, past_of

_NAMES = {
    "weights": "network",
    "tokenizer": "tokenizer",
    "text_encoder": "text encoder",
    "upsampler": "prompt upsampler",
    "guardrail": "guardrails",
    "text_guard": "text guard",
}


def describe(job: Job) -> str:
    """The requests, the plan and the files."""
    request, shape = job.request, latent_shape(job.request, job.card)
    patch = job.card.network.patch_size
    calls = SAMPLERS[request.sampler].num_calls(request.num_steps)
    tokens = shape[2] * (shape[3] // patch) * (shape[4] // patch)
    where = (
        f"{len(job.requests)} videos in {request.video_path.parent}"
        if job.is_batch
        else f"to {request.video_path}"
    )
    lines = [
        f"{job.card.name}: {request.num_frames} frames of {request.width} x {request.height} "
        f"at {request.fps} fps, seed {request.seed}, {where}",
        f"latent {shape[2]} x {shape[3]} x {shape[4]}, {tokens:,} tokens; {request.sampler}, "
        f"{request.num_steps} steps, guidance {request.guidance:g}: "
        f"{calls * request.num_branches} network calls",
        f"{job.plan.num_ranks} rank(s): {job.plan}; back end {job.backend.name} in {str(job.dtype)[6:]}",
    ]
    for name in job.needs:
        path = job.files.found().get(name)
        lines.append(f"{_NAMES[name]}: {path or 'not here; a run would look for it on the hub'}")
    return "\n".join([*lines, *_memory(job), *_past(job), *remarks(job)])


def _memory(job: Job) -> list[str]:
    """Of GPU 0 and of the host, whether or not this machine has a GPU."""
    request, setup, num_ranks = job.request, job.setup, job.plan.num_ranks
    predicted = predict(
        job.card,
        offload=setup.offload,
        is_batch=job.is_batch,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        plan=job.plan,
        num_branches=request.num_branches,
        guardrails=job.has_guardrails,
        upsamples=setup.upsamples,
        text_encoder_itemsize=4 if setup.text_encoder_dtype == "float32" else 2,
    )
    parts = [f"{stage.name} {_gib(stage.weights)} + {_gib(stage.work)}" for stage in predicted.stages]
    offloaded = ", ".join(name for name in OFFLOADABLE if name in setup.offload) or "nothing"
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
    return past_lines(pasts, job.request.video_path.parent)


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
    if frames != trained:
        lines.append(
            f"{job.card.name} was trained on {trained} frames: with --num_video_frames {frames} its videos "
            "may be worse"
        )
    return lines
