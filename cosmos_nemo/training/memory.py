"""What a training run will need on each GPU, told before anything is allocated."""

from dataclasses import dataclass
from math import prod

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.load import split_axis
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.training.settings import TrainingSettings

_FLOAT32, _BFLOAT16 = 4, 2
_WIDTHS_IN_A_LAYER = 36
"""Values of a layer that live at its backward pass, per token and in units of the width: from the peaks
measured with the 7B on one and two H200s (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True)
class MemoryPrediction:
    """Bytes on one rank."""

    num_parameters: int
    """Of this rank: its share of a tensor parallel network."""
    weights: int
    gradients: int
    optimizer: int
    """Masters and Adam's two moments, float32."""
    average: int
    activations: int
    """What comes on top of all this at the worst moment."""
    host: int
    """Of the host's memory."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def predict_memory(
    shape: DiTShape,
    settings: TrainingSettings,
    *,
    latent_THW: tuple[int, int, int],
    num_replicas: int,
    distributed: bool,
    weights_in_bfloat16: bool,
) -> MemoryPrediction:
    """num_replicas: data times context parallel ranks, over which `distributed` splits the optimizer."""
    tp = settings.tensor_parallel
    count = sum(
        prod(size) // (tp if split_axis(name) is not None else 1)
        for name, size in parameter_shapes(shape).items()
    )
    share = -(-count // num_replicas) if distributed else count
    gradient = _FLOAT32 if settings.gradient_dtype == "float32" else _BFLOAT16
    value = _BFLOAT16 if weights_in_bfloat16 else _FLOAT32
    average = share * _FLOAT32
    kept, inside = _activations(shape, settings, latent_THW=latent_THW, value=value)
    if not distributed:  # gradients come into being while the kept activations go
        kept = max(kept - count * gradient, 0)
    return MemoryPrediction(
        num_parameters=count,
        weights=count * value,
        gradients=count * gradient,
        optimizer=share * 3 * _FLOAT32,
        average=average if settings.average == "sharded" else 0,
        activations=kept + inside,
        host=average if settings.average == "host" else 0,
    )


def _activations(
    shape: DiTShape, settings: TrainingSettings, *, latent_THW: tuple[int, int, int], value: int
) -> tuple[int, int]:
    """What all layers keep for the backward pass, and the inside of the one that is computed."""
    tokens = prod(latent_THW) // shape.patch_size**2 * settings.micro_batch_size
    row = -(-tokens // settings.context_parallel) * shape.hidden_size * value
    inside = _WIDTHS_IN_A_LAYER * row
    if settings.recompute == "full":
        return shape.num_layers * row, inside
    return (shape.num_layers - 1) * inside, inside
