"""What is predicted of a job's memory, and what is said of it where the GPU had too little."""

from cosmos_nemo.job.job import Job
from cosmos_nemo.memory import Prediction, order_of, predict, uses
from cosmos_nemo.request import OFFLOADABLE, OFFLOADABLE_OF_TOKENS


def prediction_of(job: Job) -> Prediction:
    """Of GPU 0 and of the host, whether or not this machine has a GPU."""
    request, setup = job.request, job.setup
    return predict(
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
        batch_size=setup.batch_size if job.is_batch else 1,
    )


def out_of_memory(job: Job, stage: str) -> str | None:
    """What is predicted for a stage that the GPU had no memory for, and what helps; None if nothing is."""
    found = uses(
        prediction_of(job).stages, offload=job.setup.offload, is_batch=job.is_batch, order=order_of(job.card)
    )
    most = max((use for use in found if use.stage.name == stage), key=lambda use: use.num_bytes, default=None)
    if most is None:
        return None
    parts = [f"{_gib(most.stage.weights)} of its weights", f"{_gib(most.stage.work)} of its work"]
    advice = "docs/troubleshooting.md says what helps."
    if most.beside:
        parts.append(f"{_gib(sum(other.weights for other in most.beside))} of other stages")
        runs = OFFLOADABLE if job.card.tokens is None else OFFLOADABLE_OF_TOKENS
        wanted = job.setup.offload | {other.offload_name for other in most.beside}
        names = ",".join(name for name in runs if name in wanted)
        advice = (
            f"--offload {names} parks those in host memory; docs/troubleshooting.md says what else helps."
        )
    return (
        f"The GPU's memory does not suffice for {stage}: {_gib(most.num_bytes)} GiB are predicted on GPU 0 "
        f"while it runs, {', '.join(parts[:-1])} and {parts[-1]}. {advice}"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"
