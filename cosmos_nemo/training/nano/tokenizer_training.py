"""The training of the nano world's video tokenizers: loss, optimisers, average, loop and state file."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_nemo.request import RequestError

OnStep = Callable[[int, float], None]
"""Takes the number of finished steps and the loss of the last one that was read."""

_REST_RATE = 0.07
"""What is no matrix takes this part of the learning rate."""
_WARM_UP = 0.05
_BETAS = (0.9, 0.98)
_MOMENTUM = 0.95
_LARGEST_GRADIENT = 1.0
_AVERAGE = 0.998
LATENT_NOISE = 0.15
"""At most this part of a channel's standard deviation, so that the decoder bears what a diffusion leaves."""
_LATENT_PENALTY = 1e-4
_LOSS_EVERY = 20


class TokenizerStateError(RequestError):
    """A saved state that is damaged, or does not belong to the training that was asked for."""


class TrainingStopped(Exception):
    """The time was up. With a path for the state it is there, and the same call goes on from it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def latent_noise(sizes_BCTHW: Sequence[int], *, dice: torch.Generator) -> Tensor:
    """Noise for a latent in its channels' standard deviations, of another level in each clip."""
    device = dice.device
    level = LATENT_NOISE * torch.rand(sizes_BCTHW[0], 1, 1, 1, 1, generator=dice, device=device)
    return level * torch.randn(tuple(sizes_BCTHW), generator=dice, device=device)


def with_noise(latent_BCTHW: Tensor, noise_BCTHW: Tensor) -> Tensor:
    """The latent with noise that grows with it, so that it has nothing to gain from being large."""
    return latent_BCTHW + latent_BCTHW.float().std(dim=(0, 2, 3, 4), keepdim=True) * noise_BCTHW


def reconstruction_loss(made: Tensor, wanted: Tensor, *, weight: Tensor, latent: Tensor) -> Tensor:
    """L1 and L2 on pixels by their weight, one for the three colours, and a little on the latent's size."""
    error = (made.float() - wanted).abs()
    pixels = (weight * (error + error.square())).sum() / (3 * weight.sum())
    return pixels + _LATENT_PENALTY * latent.float().square().mean()


class Orthogonal(torch.optim.Optimizer):
    """Momentum whose every step is made an orthogonal matrix: Muon, by Keller Jordan and others (2024).

    A convolution counts as the matrix [outputs, inputs * kernel]; those of one shape are worked on together.
    Adam takes many times as many steps here, because the sub-bands of a patch differ so much in size.
    """

    def __init__(self, parameters: Sequence[Tensor], *, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; there is no closure."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for (outputs, inputs), parameters in alike.items():
                updates = orthogonalised(torch.stack([self._direction(each) for each in parameters]))
                rate = group["lr"] * max(1, outputs / inputs) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.sub_(update.view_as(parameter), alpha=rate)

    def _direction(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        return parameter.grad.lerp(state["momentum"], _MOMENTUM).flatten(1)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Nearly the orthogonal factors of [N, rows, columns], by five Newton-Schulz steps."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


OptimizersOf = Callable[[Mapping[str, Tensor], float], tuple[torch.optim.Optimizer, ...]]


def orthogonal_and_adam(
    parameters: Mapping[str, Tensor], learning_rate: float
) -> tuple[torch.optim.Optimizer, ...]:
    """For convolutions: their matrices, and the rest at a part of the learning rate."""
    matrices = [values for values in parameters.values() if is_matrix(values)]
    rest = [values for values in parameters.values() if not is_matrix(values)]
    return (
        Orthogonal(matrices, lr=learning_rate),
        torch.optim.Adam(rest, lr=_REST_RATE * learning_rate, betas=_BETAS, fused=rest[0].is_cuda),
    )


class Training:
    """A network, its running average and optimisers, and the number of finished steps."""

    def __init__(
        self,
        network: nn.Module,
        objective: nn.Module,
        inputs: Callable[[int], tuple[Tensor, ...]],
        *,
        learning_rate: float,
        num_steps: int,
        uses_graphs: bool,
        optimizers_of: "OptimizersOf | None" = None,
        average_decay: float = _AVERAGE,
    ) -> None:
        """objective: the loss of `network`, of which it is made, on the `inputs` of a step.

        learning_rate: of the convolutions' matrices. uses_graphs: the loss and its gradients are recorded as
        CUDA graphs, for networks whose kernels take longer to launch than to run. optimizers_of: of all
        parameters by their names, at this learning rate; None is `orthogonal_and_adam`.
        """
        self.network, self.inputs, self.num_steps, self.step = network, inputs, num_steps, 0
        self._objective, self._uses_graphs = objective, uses_graphs
        self._recorded: nn.Module | None = None
        self._recorded_for: list[torch.Size] = []
        network.requires_grad_(True)
        self.average = {name: values.detach().clone() for name, values in network.named_parameters()}
        self._average_decay = average_decay
        self.optimizers = (optimizers_of or orthogonal_and_adam)(
            dict(network.named_parameters()), learning_rate
        )
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(each, self._relative_rate) for each in self.optimizers
        ]

    def _relative_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        begin = max(1, round(_WARM_UP * self.num_steps))
        return min((step + 1) / begin, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.num_steps)))

    def advance(self) -> Tensor:
        """One step; its loss, still on the device."""
        inputs = self.inputs(self.step)
        loss: Tensor = self._loss_of(inputs)(*inputs)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.step += 1
        self._update_average()
        return loss.detach()

    def _loss_of(self, inputs: tuple[Tensor, ...]) -> nn.Module:
        """What makes the loss of such inputs; recorded anew when their sizes change."""
        if not self._uses_graphs:
            return self._objective
        sizes = [values.shape for values in inputs]
        if self._recorded is None or self._recorded_for != sizes:
            # The old one goes first, for its memory. A recording replaces the forward of what it is given.
            self._recorded = None
            graphed: Any = torch.cuda.make_graphed_callables(copy.copy(self._objective), inputs)
            self._recorded, self._recorded_for = graphed, sizes
        assert self._recorded is not None
        return self._recorded

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self._average_decay, self.step / (self.step + 9))
        parameters = [values.detach() for values in self.network.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - keep)

    def save(self) -> dict[str, Any]:
        """What `load` takes, tensors on the device."""
        return {
            "network": {name: values.detach() for name, values in self.network.named_parameters()},
            "average": self.average,
            "optimizers": [each.state_dict() for each in self.optimizers],
            "schedules": [each.state_dict() for each in self.schedules],
            "step": self.step,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues where `save` was called."""
        fill(self.network, state["network"])
        for name, values in self.average.items():
            values.copy_(state["average"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.step = state["step"]


def run(
    training: Training,
    *,
    settings: Mapping[str, Any],
    state_path: Path | None,
    save_every_s: float,
    on_step: OnStep,
    wants_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """The steps that are left.

    state_path: a file that is written every `save_every_s` seconds and at the end, and continued from if it
    is there; the result is that of an unbroken run. TokenizerStateError if it is damaged, or belongs to a
    training with other `settings`. TrainingStopped after a step that is not the last, if `wants_to_stop`
    then says so.
    """
    if state_path is not None and state_path.is_file():
        device = next(training.network.parameters()).device
        training.load(_read_state(state_path, settings=settings, device=device))
    saved_at = time.monotonic()
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False):
        for step, loss in _steps(training):
            is_last = step == training.num_steps
            stops = not is_last and wants_to_stop()
            is_due = is_last or stops or time.monotonic() - saved_at > save_every_s
            if state_path is not None and is_due:
                _write_state(state_path, {"settings": dict(settings), **training.save()})
                saved_at = time.monotonic()
            on_step(step, loss)
            if stops:
                raise TrainingStopped(step)


def trained_average(
    begin: Callable[..., Training],
    shape: object,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    device: torch.device,
    learning_rate: float,
    state_path: Path | None,
    save_every_s: float,
    on_step: OnStep,
    wants_to_stop: Callable[[], bool],
    **options: Any,
) -> dict[str, Tensor]:
    """The averaged weights of the tokenizer training that `begin` makes of `shape` and the numbers.

    The options are for `begin` alone: they do not change the result. The rest is as `run` has it.
    """
    numbers: dict[str, Any] = {
        "seed": seed,
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    training = begin(shape, **numbers, device=device, **options)
    run(
        training,
        settings={"shape": repr(shape), **numbers},
        state_path=state_path,
        save_every_s=save_every_s,
        on_step=on_step,
        wants_to_stop=wants_to_stop,
    )
    return training.average


def _steps(training: Training) -> Iterator[tuple[int, float]]:
    """How many steps are finished, and the last loss that was read."""
    shown = math.nan
    while training.step < training.num_steps:
        loss = training.advance()
        # Reading the loss waits for the device.
        if training.step % _LOSS_EVERY == 1 or training.step == training.num_steps:
            shown = float(loss)
        yield training.step, shown


def _write_state(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    torch.save(state, partial)
    partial.replace(path)


def _read_state(path: Path, *, settings: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        found = dict(state["settings"])
    except Exception as error:  # torch.load has no error of its own: a damaged file raises any.
        raise TokenizerStateError(
            f"{path} cannot be read as the state of a training, {error}: remove it"
        ) from error
    for name, value in settings.items():
        if found.get(name) != value:
            raise TokenizerStateError(
                f"{path} belongs to a training with {name} {found.get(name)}, not {value}: remove it"
            )
    assert isinstance(state, dict)
    return state


def is_matrix(values: Tensor) -> bool:
    """Whether it is the matrix of a linear map, and no gain, offset or scale."""
    return values.ndim > 1 and values[0].numel() > 1


@torch.no_grad()
def fill(network: nn.Module, weights: Mapping[str, Tensor] | Iterator[tuple[str, Tensor]]) -> None:
    """Copies weights into the parameters of their names."""
    values = dict(weights)
    for name, parameter in network.named_parameters():
        parameter.copy_(values[name])
