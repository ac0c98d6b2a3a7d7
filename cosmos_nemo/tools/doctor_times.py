"""Seconds that a video took where it was measured: nothing is reckoned from one GPU or model to another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A figure of docs/performance.md: of one GPU, at the card's own size, steps and guidance."""

    gpu: str
    """As CUDA calls it."""
    model: str
    seconds: float
    how: str


MEASURED = (
    Measured(
        "NVIDIA H200",
        "Cosmos-1.0-Diffusion-7B-Text2World",
        269.0,
        "loading included, FlashAttention 3, the text from the cache, without guardrails and upsampler",
    ),
    Measured(
        "NVIDIA H200",
        "Cosmos-Predict2-2B-Video2World",
        238.1,
        "loading included, FlashAttention 3, without guardrails and refiner",
    ),
    Measured(
        "NVIDIA H200",
        "Cosmos-Predict1-7B-Text2World",
        324.6,
        "loading included, with guardrails and an upsampler that writes all it may",
    ),
    Measured(
        "NVIDIA H200",
        "Cosmos-Predict1-14B-Text2World",
        533.9,
        "loading included, everything offloaded, with guardrails and an upsampler that writes all it may",
    ),
    Measured(
        "NVIDIA H200",
        "Cosmos-Predict1-4B",
        72.1,
        "loading included, kernels compiled before, back end te, without guardrails",
    ),
)


def time_text(model: str, gpu: str | None) -> str:
    """What was measured for the card `model` on a GPU of this name; None: there is no GPU."""
    if gpu is None:
        return "no measurement of its seconds without a GPU"
    for row in MEASURED:
        if (row.gpu, row.model) == (gpu, model):
            return f"measured on such a GPU: {row.seconds:.0f} seconds a video, {row.how}"
    return "no measurement of its seconds on such a GPU"
