"""What is predicted of one way to run a card."""

from dataclasses import dataclass

from cosmos_nemo.catalog import ModelCard
from cosmos_nemo.memory.base import BFLOAT16, StageMemory
from cosmos_nemo.memory.order import order_of
from cosmos_nemo.memory.stages import stage_memory
from cosmos_nemo.memory.totals import host_bytes, peak
from cosmos_nemo.plan import Plan


@dataclass(frozen=True)
class Prediction:
    """Of one way to run a card, for one video or for one chunk or clip of it."""

    stages: tuple[StageMemory, ...]
    peak: int
    """Of GPU 0, in tensors; the GPU needs DEVICE_OVERHEAD more."""
    host: int
    """Of pinned memory, for the parked copies of all ranks together."""


def predict(
    card: ModelCard,
    *,
    offload: frozenset[str] = frozenset(),
    is_batch: bool = False,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    plan: Plan | None = None,
    num_branches: int | None = None,
    guardrails: bool = True,
    upsamples: bool = True,
    text_encoder_itemsize: int = BFLOAT16,
    batch_size: int = 1,
) -> Prediction:
    """Peak and host memory; arguments as of `stage_memory`, `peak` and `host_bytes`."""
    stages = stage_memory(
        card,
        height=height,
        width=width,
        num_frames=num_frames,
        plan=plan,
        num_branches=num_branches,
        guardrails=guardrails,
        upsamples=upsamples,
        text_encoder_itemsize=text_encoder_itemsize,
        batch_size=batch_size,
    )
    return Prediction(
        stages,
        peak=peak(stages, offload=offload, is_batch=is_batch, order=order_of(card)),
        host=host_bytes(stages, offload, plan=plan),
    )
