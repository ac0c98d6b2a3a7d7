"""Noise levels (sigmas) of a sampling run, falling from pure noise to almost nothing."""

import math

import torch
from torch import Tensor


def karras_sigmas(count: int, *, sigma_max: float, sigma_min: float, rho: float = 7.0) -> Tensor:
    """`count` noise levels, float64, from sigma_max down to sigma_min, evenly spaced in sigma^(1/rho).

    With a count of 1 it is sigma_max alone. Karras et al. 2022 (arXiv 2206.00364), equation 5.
    """
    _check_range(sigma_max=sigma_max, sigma_min=sigma_min, rho=rho)
    if count < 1:
        raise ValueError(f"A schedule of {count} noise levels cannot be made: ask for 1 or more.")
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
    return (top + ramp * (bottom - top)) ** rho


def res_sigmas(num_steps: int, *, order: int, sigma_max: float, sigma_min: float, rho: float) -> Tensor:
    """Noise levels of the RES sampler, float64; spec/predict1-diffusion.md 4.1.

    `order` denoiser calls are spent on each interval, so num_steps // order intervals are made and
    a remainder is dropped. ValueError if that leaves none.
    """
    check_num_steps(num_steps)
    if num_steps < order:
        raise ValueError(
            f"num_steps {num_steps} makes no step: this solver spends {order} denoiser calls on each. "
            f"Ask for {order} or more."
        )
    return karras_sigmas(num_steps // order + 1, sigma_max=sigma_max, sigma_min=sigma_min, rho=rho)


def euler_sigmas(num_steps: int, *, sigma_max: float, sigma_min: float, rho: float) -> Tensor:
    """num_steps noise levels and then 0, float64 holding float32 values; spec/predict1-diffusion.md 4.2.

    The levels are rounded to float32 because the released scheduler keeps its table in float32.
    """
    check_num_steps(num_steps)
    levels = karras_sigmas(num_steps, sigma_max=sigma_max, sigma_min=sigma_min, rho=rho)
    return torch.cat([levels.float().double(), torch.zeros(1, dtype=torch.float64)])


def check_num_steps(num_steps: int) -> None:
    """ValueError unless num_steps is at least 1."""
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps} makes no step: ask for 1 or more. The models use 35.")


def _check_range(*, sigma_max: float, sigma_min: float, rho: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"Noise levels from {sigma_max} down to {sigma_min} do not fall: "
            "sigma_max must be finite and above sigma_min, and sigma_min above 0."
        )
    if not 0 < rho < math.inf:
        raise ValueError(f"rho {rho} is not a positive number. The models use 7.")
