"""Training of a small discrete video tokenizer, of the DV8x16x16 kind, on clips of the nano world.

Rounding has no gradient: the training takes that of the value before it (straight-through, as finite scalar
quantisation was published, arXiv 2309.15505).

It sees the world's clips alone: 5,000 codes are few, and none is to be spent on what no video here shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint.writer.discrete_tokenizer import write_discrete_tokenizer_safetensors
from cosmos_nemo.models.discrete_tokenizer.fsq import bounded, nearest_codes
from cosmos_nemo.models.discrete_tokenizer.model import DiscreteTokenizer, build_autoencoder
from cosmos_nemo.training.nano.patches import blocks_and_weight, patch_training
from cosmos_nemo.training.nano.tokenizer_clips import world_and_robots
from cosmos_nemo.training.nano.tokenizer_training import OnStep, Training, fill, trained_average

_LEARNING_RATE = 0.0075
"""Of the convolutions' matrices."""


@dataclass(frozen=True, kw_only=True)
class TrainedDiscreteTokenizer:
    """Weights under diffusers' names, float32 on the CPU."""

    shape: DiscreteTokenizerShape
    weights: dict[str, Tensor]

    def build(self, *, device: torch.device, dtype: torch.dtype = torch.float32) -> DiscreteTokenizer:
        """The tokenizer, ready to encode and decode."""
        autoencoder = build_autoencoder(self.shape, device=device, dtype=dtype)
        fill(autoencoder, self.weights)
        return DiscreteTokenizer(autoencoder, levels=self.shape.levels)


def train_discrete_tokenizer(
    shape: DiscreteTokenizerShape,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    device: torch.device,
    learning_rate: float = _LEARNING_RATE,
    state_path: Path | None = None,
    save_every_s: float = 60.0,
    on_step: OnStep = lambda step, loss: None,
    wants_to_stop: Callable[[], bool] = lambda: False,
) -> TrainedDiscreteTokenizer:
    """A tokenizer trained from nothing; bfloat16 arithmetic on a GPU, float32 elsewhere.

    state_path: a file that is written every `save_every_s` seconds and at the end, and continued from if it
    is there; the result is that of an unbroken run. TokenizerStateError if it is damaged, or belongs to
    another training. TrainingStopped if `wants_to_stop` says so before the end.
    """
    average = trained_average(
        _training,
        shape,
        seed=seed,
        num_steps=num_steps,
        batch_size=batch_size,
        device=device,
        learning_rate=learning_rate,
        state_path=state_path,
        save_every_s=save_every_s,
        on_step=on_step,
        wants_to_stop=wants_to_stop,
    )
    return TrainedDiscreteTokenizer(
        shape=shape, weights={name: values.cpu() for name, values in average.items()}
    )


def write_discrete_tokenizer(
    folder: Path, trained: TrainedDiscreteTokenizer, *, dtype: torch.dtype = torch.float16
) -> None:
    """Writes tokenizer.safetensors, weights in `dtype`; stages.discrete_tokenizer reads it.

    The folder is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: values.to(dtype) for name, values in trained.weights.items()}
    write_discrete_tokenizer_safetensors(folder, trained.shape, weights)


class StraightThrough(nn.Module):
    """[B, C, ...] -> the nearest codes, float32, with the gradient of what was rounded to them."""

    middle_C: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.register_buffer("middle_C", torch.tensor(levels).div(2, rounding_mode="floor").float())

    def forward(self, z: Tensor) -> Tensor:
        soft = bounded(z, self.levels) / self.middle_C.view(-1, *(1,) * (z.ndim - 2))
        return soft + (nearest_codes(z, self.levels) - soft).detach()


def _training(
    shape: DiscreteTokenizerShape,
    *,
    seed: int,
    learning_rate: float,
    num_steps: int,
    batch_size: int,
    device: torch.device,
) -> Training:
    """The training at its beginning. Clips depend on seed and step alone."""

    def inputs(step: int) -> tuple[Tensor, Tensor]:
        dice = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return blocks_and_weight(world_and_robots(batch_size, 0, dice=dice, device=device))

    return patch_training(
        build_autoencoder(shape, device=device, dtype=torch.float32),
        StraightThrough(shape.levels).to(device),
        inputs,
        seed=seed,
        learning_rate=learning_rate,
        num_steps=num_steps,
    )
