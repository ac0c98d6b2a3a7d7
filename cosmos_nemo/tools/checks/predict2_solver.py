"""RES on the analytic denoiser of the Predict2 files. No network: float64 whatever --dtype says."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from cosmos_nemo.sampling.samplers import Solver, res, res_sampler
from cosmos_nemo.tools.checks import Case, Options, Outputs, Tensors
from cosmos_nemo.tools.checks.reference import ReferenceFileError

_NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_FORMULA = re.compile(rf"x0\(x,s\)=([+-]?{_NUMBER})\*tanh\(x/\(1\+s\)\)([+-]{_NUMBER})\*cos\(s\)(?:,.*)?")


def check(case: Case, tensors: Tensors, options: Options) -> Outputs:
    """Per number of steps the schedule and the sample of each solver that the file has; the single steps."""
    levels = {name: case[name] for name in ("sigma_max", "sigma_min", "rho")}
    denoise = _Recorded(_formula(case["denoiser"]))
    x = tensors["inputs.x_sigma_max"].to(options.device)
    for num_steps in case["steps"]:
        yield f"sigmas_{num_steps}", res_sampler("2ab", **levels).schedule(num_steps)
        for solver in get_args(Solver):
            if f"outputs.{solver}_{num_steps}" in tensors:
                sampler = res_sampler(solver, **levels)
                yield f"{solver}_{num_steps}", sampler.integrate(denoise, x, sampler.schedule(num_steps))
    if "inputs.step.x" in tensors:
        names = ("x", "x0_cur", "x0_prev", "sigma_prev_cur_next")
        yield from _single_steps(*(tensors[f"inputs.step.{name}"].to(options.device) for name in names))


def _single_steps(
    x: Tensor, clean: Tensor, clean_before: Tensor, sigmas: Tensor
) -> Iterator[tuple[str, Tensor]]:
    before, now, _ = sigmas
    # Where a first step, which is Euler's, must start to arrive at x.
    start = clean_before + before / now * (x - clean_before)
    yield "step.ab2", _state_at_the_end("2ab", start, sigmas, (clean_before, clean))
    yield "step.euler", _state_at_the_end("1euler", x, sigmas[1:], (clean,))


def _state_at_the_end(solver: Solver, x: Tensor, sigmas: Tensor, answers: Iterable[Tensor]) -> Tensor:
    """What the clean-up call at the last sigma is asked, the calls before it being answered so."""
    script = iter(answers)
    denoise = _Recorded(lambda x, sigma: next(script, x))
    res(denoise, x, sigmas, solver=solver)
    return denoise.inputs[-1]


@dataclass
class _Recorded:
    """A denoiser that is a function, and remembers what it was asked."""

    function: Callable[[Tensor, Tensor], Tensor]
    inputs: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.inputs.append(x)
        return self.function(x, sigma)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


def _formula(text: str) -> Callable[[Tensor, Tensor], Tensor]:
    """ReferenceFileError if it is another formula than the one whose two factors are read here."""
    found = _FORMULA.fullmatch(text.replace(" ", ""))
    if found is None:
        raise ReferenceFileError(
            f"`denoiser` is {text!r}. The only formula known is x0(x,s)=A*tanh(x/(1+s))+B*cos(s), "
            "where A and B are numbers."
        )
    of_x, of_sigma = map(float, found.groups())
    return lambda x, sigma: of_x * torch.tanh(x / (1 + sigma)) + of_sigma * torch.cos(sigma)
