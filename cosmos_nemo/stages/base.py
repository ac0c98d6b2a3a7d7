"""Stages: what owns a model's weights, and how they are parked between uses."""

import logging
import time
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


@dataclass
class Costs:
    """What a stage has cost so far: seconds to make it resident, seconds in all, peak bytes on its device."""

    load_seconds: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0


class Parked:
    """One host copy of a module's weights, pinned when the weights live on a GPU.

    Weights never travel back: `release` frees the device storage, `restore` copies from the host again.
    """

    def __init__(self) -> None:
        self._host: dict[str, Tensor] = {}

    def keep(self, module: nn.Module) -> None:
        """Takes the host copy of a resident module; once, right after it is built."""
        for name, tensor in _storage(module):
            if tensor.is_cuda:
                host = torch.empty_like(tensor, device="cpu", pin_memory=True)
                self._host[name] = host.copy_(tensor.detach())
            else:
                self._host[name] = tensor.detach()

    def restore(self, module: nn.Module, device: torch.device) -> None:
        for name, tensor in _storage(module):
            tensor.data = self._host[name].to(device, non_blocking=True)

    def release(self, module: nn.Module) -> None:
        """Empties every tensor, so that use of a parked module fails at once instead of being slow."""
        for _, tensor in _storage(module):
            tensor.data = tensor.data.new_empty(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _storage(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


class Stage:
    """Owns one model. Entering makes it resident, leaving parks it if asked to.

    A subclass gives `name` and `build`, and its own typed `__call__`.
    """

    name: ClassVar[str]

    def __init__(self, *, device: torch.device, offload: bool = False) -> None:
        self.device, self.offload = device, offload
        self.module: nn.Module | None = None
        self.parked = Parked()
        self.costs = Costs()
        self._resident = False
        self._entered = 0.0

    def build(self) -> nn.Module:
        """The module, filled, on `self.device`. Called at most once per process."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def reside(self) -> None:
        """Makes the module resident: builds it at first, afterwards copies a parked one to the device."""
        if self._resident:
            return
        started = time.perf_counter()
        if self.module is None:
            self.module = self.build()
            if self.offload:
                self.parked.keep(self.module)
        else:
            self.parked.restore(self.module, self.device)
        self._synchronize()
        self._resident = True
        self.costs.load_seconds += time.perf_counter() - started
        logger.info("%s resident after %.1f s", self.name, time.perf_counter() - started)

    def park(self) -> None:
        if self.offload and self._resident and self.module is not None:
            self.parked.release(self.module)
            self._resident = False

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._entered = time.perf_counter()
        try:
            self.reside()
        except BaseException:
            self.park()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._synchronize()
        self.costs.seconds += time.perf_counter() - self._entered
        if self.device.type == "cuda":
            self.costs.peak_bytes = max(self.costs.peak_bytes, torch.cuda.max_memory_allocated(self.device))
        self.park()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
