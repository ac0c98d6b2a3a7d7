"""Samplers: from noise to a sample by asking a denoiser at falling noise levels. They know nothing else."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from cosmos_nemo.sampling.denoiser import Denoise
from cosmos_nemo.sampling.schedule import euler_sigmas, res_sigmas

OnStep = Callable[[int, int], None]
"""Called after each denoiser call with its number, from 1, and the number of calls in all."""

Solver = Literal["2ab", "1euler", "2mid"]

_CALLS_PER_INTERVAL: dict[Solver, int] = {"2ab": 1, "1euler": 1, "2mid": 2}
_SMALLEST_LOG_STEP = 1e-6


def res(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, solver: Solver = "2ab", on_step: OnStep | None = None
) -> Tensor:
    """x is noise at sigmas[0]; returns x0 as predicted at the last sigma, in x's dtype.

    The state is float64; the denoiser sees it, and sigma, in x's dtype. Solvers: "2ab" two-step
    Adams-Bashforth, "1euler", "2mid" midpoint (two calls per interval). One more call at the last
    sigma cleans up. ValueError if sigmas do not fall or reach 0. spec/predict1-diffusion.md 4.1.
    """
    if solver not in _CALLS_PER_INTERVAL:
        raise ValueError(f"Solver {solver!r} is unknown. There are {', '.join(_CALLS_PER_INTERVAL)}.")
    levels = _falling_levels(sigmas)
    if any(then <= 0 or math.log(now / then) < _SMALLEST_LOG_STEP for now, then in pairwise(levels)):
        raise ValueError(
            f"RES steps in ln sigma, each by {_SMALLEST_LOG_STEP} or more, and cannot reach 0: "
            f"take fewer steps than {len(levels) - 1}, or a last sigma above 0 (here {levels[-1]})."
        )
    predict = _Predictor(denoise, x.dtype, _CALLS_PER_INTERVAL[solver] * (len(levels) - 1) + 1, on_step)
    state, history = x.double(), None
    for now, then in pairwise(levels):
        clean = predict(state, now)
        if solver == "2mid":
            state = _midpoint_step(predict, state, clean, now, then)
        elif solver == "2ab" and history is not None:
            state = _two_step(state, clean, now, then, *history)
        else:
            state = _one_step(state, clean, now, then)
        history = clean, now
    return predict(state, levels[-1]).to(x.dtype)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, *, on_step: OnStep | None = None) -> Tensor:
    """x is noise at sigmas[0]; returns the state at the last sigma (x0 itself if that is 0), in x's dtype.

    Each step starts from the state with the given frames put in. One denoiser call per step.
    ValueError if sigmas do not fall. spec/predict1-diffusion.md 4.2.
    """
    levels = _falling_levels(sigmas)
    for step, (now, then) in enumerate(pairwise(levels), start=1):
        sigma = torch.tensor(now, dtype=x.dtype)
        clean = denoise(x, sigma)
        x = _one_step(denoise.given(x, sigma), clean, now, then).to(x.dtype)
        if on_step is not None:
            on_step(step, len(levels) - 1)
    return x


class _Predictor:
    """The denoiser as RES sees it: float64 in, float64 out; counts the calls."""

    def __init__(self, denoise: Denoise, dtype: torch.dtype, total: int, on_step: OnStep | None) -> None:
        self.denoise, self.dtype, self.total, self.on_step = denoise, dtype, total, on_step
        self.calls = 0

    def __call__(self, state: Tensor, sigma: float) -> Tensor:
        clean = self.denoise(state.to(self.dtype), torch.tensor(sigma, dtype=self.dtype)).double()
        self.calls += 1
        if self.on_step is not None:
            self.on_step(self.calls, self.total)
        return clean


def _one_step(x: Tensor, clean: Tensor, now: float, then: float) -> Tensor:
    # Euler's x + (x - x0) / now * (then - now), in the form that is exactly x0 at sigma 0.
    return clean + then / now * (x - clean)


def _two_step(
    x: Tensor, clean: Tensor, now: float, then: float, clean_before: Tensor, before: float
) -> Tensor:
    h = math.log(now / then)
    b_before = _phi2(-h) * h / math.log(now / before)
    b_now = _phi1(-h) - b_before
    return math.exp(-h) * x + h * (b_now * clean + b_before * clean_before)


def _midpoint_step(predict: _Predictor, x: Tensor, clean: Tensor, now: float, then: float) -> Tensor:
    h = math.log(now / then)
    middle = predict(math.exp(-h / 2) * x + h / 2 * _phi1(-h / 2) * clean, math.sqrt(now * then))
    b_middle = 2 * _phi2(-h)
    b_now = _phi1(-h) - b_middle
    return math.exp(-h) * x + h * (b_now * clean + b_middle * middle)


def _phi1(z: float) -> float:
    return math.expm1(z) / z


def _phi2(z: float) -> float:
    return (_phi1(z) - 1) / z


def _falling_levels(sigmas: Tensor) -> list[float]:
    levels: list[float] = sigmas.double().flatten().tolist()
    if len(levels) < 2:
        raise ValueError(f"A sampler needs 2 noise levels or more, not {len(levels)}.")
    for step, (now, then) in enumerate(pairwise(levels), start=1):
        if not 0 <= then < now < math.inf:
            raise ValueError(
                f"Noise levels must fall, from a finite one to 0 at the lowest, but {then} follows {now} "
                f"in step {step}."
            )
    return levels


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A schedule and a way to follow it.

    Unit normal noise times start_scale is the state at the first of schedule(num_steps).
    calls_of(number of noise levels) is how often `integrate` asks the denoiser.
    """

    schedule: Callable[[int], Tensor]
    start_scale: float
    integrate: Callable[..., Tensor]
    calls_of: Callable[[int], int]

    def num_calls(self, num_steps: int) -> int:
        """Denoiser calls of a run of num_steps. ValueError if there is no such run."""
        return self.calls_of(len(self.schedule(num_steps)))

    def sample(
        self, denoise: Denoise, noise: Tensor, *, num_steps: int, on_step: OnStep | None = None
    ) -> Tensor:
        """noise is unit normal; returns the clean sample in its shape and dtype."""
        sigmas = self.schedule(num_steps)
        return self.integrate(denoise, noise * self.start_scale, sigmas, on_step=on_step)


def res_sampler(
    solver: Solver = "2ab", *, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0
) -> Sampler:
    """RES with the defaults of Cosmos 1.0: about one denoiser call per step, and the clean-up call."""
    calls = _CALLS_PER_INTERVAL[solver]
    return Sampler(
        schedule=partial(res_sigmas, order=calls, sigma_max=sigma_max, sigma_min=sigma_min, rho=rho),
        start_scale=sigma_max,
        integrate=partial(res, solver=solver),
        calls_of=lambda levels: calls * (levels - 1) + 1,
    )


def euler_sampler(*, sigma_max: float = 80.0, sigma_min: float = 0.0002, rho: float = 7.0) -> Sampler:
    """EDM Euler with the defaults of Cosmos-Predict1: one denoiser call per step, down to sigma 0."""
    return Sampler(
        schedule=partial(euler_sigmas, sigma_max=sigma_max, sigma_min=sigma_min, rho=rho),
        start_scale=math.sqrt(sigma_max**2 + 1),
        integrate=euler,
        calls_of=lambda levels: levels - 1,
    )


SAMPLERS: dict[str, Sampler] = {
    "RES": res_sampler("2ab"),
    "RES-1euler": res_sampler("1euler"),
    "RES-2mid": res_sampler("2mid"),
    "EDM": euler_sampler(),
}
