"""RES trajectories on analytic denoisers. No network: float64 whatever --dtype says."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cosmos_nemo.sampling.samplers import res_sampler
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors

Formula = Callable[..., Tensor]


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Per case: sigma_schedule, then inputs, sigmas and outputs of every denoiser call, then final."""
    noise, mu = (tensors[f"inputs.{name}"].to(options.device) for name in ("noise", "mu"))
    for one in case["cases"]:
        sampler = res_sampler(
            one["solver"], sigma_max=one["sigma_max"], sigma_min=one["sigma_min"], rho=one["rho"]
        )
        denoise = _Analytic(DENOISERS[one["denoiser"]], mu, case["s_data"])
        final = sampler.sample(denoise, noise, num_steps=one["num_steps"])
        yield f"{one['key']}.sigma_schedule", sampler.schedule(one["num_steps"])
        yield f"{one['key']}.denoiser_inputs", torch.stack(denoise.inputs)
        yield f"{one['key']}.denoiser_sigmas", torch.stack(denoise.sigmas)
        yield f"{one['key']}.denoiser_outputs", torch.stack(denoise.outputs)
        yield f"{one['key']}.final", final


@dataclass
class _Analytic:
    """A denoiser that is a formula, and remembers its calls."""

    formula: Formula
    mu: Tensor
    s_data: float
    inputs: list[Tensor] = field(default_factory=list)
    sigmas: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.inputs.append(x)
        self.sigmas.append(sigma)
        self.outputs.append(self.formula(x, sigma, mu=self.mu, s=self.s_data))
        return self.outputs[-1]

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


def gauss(x: Tensor, sigma: Tensor, *, mu: Tensor, s: float) -> Tensor:
    """The exact denoiser of a normal distribution around mu with standard deviation s."""
    return (s**2 * x + sigma**2 * mu) / (s**2 + sigma**2)


def tanh(x: Tensor, sigma: Tensor, *, mu: Tensor, s: float) -> Tensor:
    """A denoiser that is nonlinear in x; s does not matter."""
    return 0.7 * torch.tanh((x + 0.3 * mu) / torch.sqrt(1 + sigma**2))


DENOISERS: dict[str, Formula] = {"gauss": gauss, "tanh": tanh}
