"""The noise that a video starts from."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def draw_noise(shape: Sequence[int], *, seed: int) -> Tensor:
    """Unit normal noise, float32 on the CPU, a function of shape and seed (0 to 2^32 - 1) alone.

    NumPy's generator, because released seeds were drawn from it and it is the same on every machine:
    every rank draws the full shape and takes its part. spec/predict1-diffusion.md 4.1.
    """
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape))).float()
