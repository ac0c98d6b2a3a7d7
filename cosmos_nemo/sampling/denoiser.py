"""The meeting point of samplers and networks: a denoiser turns (x, sigma) into x0."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cosmos_nemo.sampling.scaling import edm_scaling

Branch = Literal["cond", "uncond"]


class Denoise(Protocol):
    """What a sampler needs to know of a model."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate x0 of the clean sample; x has noise of level sigma (0-dim)."""
        ...

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x with the frames that are given put in at noise level sigma; x itself if none are."""
        ...


@dataclass(frozen=True)
class EdmDenoiser:
    """x0 from a raw network in EDM scaling, for samples that are wholly generated.

    network(c_in * x, c_noise) -> F: x of any shape and at least float32, c_noise 0-dim on x's device;
    F of x's shape in any dtype. x0 has the dtype of x, but at least float32.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    sigma_data: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        x = _at_least_float32(x)
        scaling = edm_scaling(sigma.to(device=x.device, dtype=x.dtype), sigma_data=self.sigma_data)
        output = self.network(scaling.c_in * x, scaling.c_noise)
        return scaling.c_skip * x + scaling.c_out * output.to(x.dtype)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


def branches_needed(guidance: float) -> tuple[Branch, ...]:
    """The predictions that `guided` would really use at this guidance."""
    if guidance == 0:
        return ("cond",)
    if guidance == -1:
        return ("uncond",)
    return ("cond", "uncond")


def guided(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """cond + guidance * (cond - uncond), at least float32; spec/predict1-diffusion.md 4.

    0 is the plain conditional prediction, -1 the unconditional one; 7 is what is called 8 elsewhere.
    """
    cond, uncond = _at_least_float32(cond), _at_least_float32(uncond)
    return cond + guidance * (cond - uncond)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
