"""Stages: what owns a model's weights, and how they are parked between uses."""

import logging
import time
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from cosmos_nemo.stages.parked import RESERVE, CudaTransfer, Parked

logger = logging.getLogger(__name__)

_SIGNATURE = "stage"
"""An attribute of the error, which other ranks get with it."""


@dataclass
class Costs:
    """What a stage has cost so far: seconds to make it resident, seconds in all, peak bytes on its device."""

    load_seconds: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0
    """In use by tensors; those of other resident stages count."""
    peak_reserved_bytes: int = 0
    """Taken from the device by PyTorch's allocator, which nobody else can have meanwhile."""


def stage_without_memory(error: BaseException) -> str | None:
    """The name of the stage in which the device had no memory left; None for other errors and places."""
    return getattr(error, _SIGNATURE, None) if isinstance(error, torch.OutOfMemoryError) else None


class Stage:
    """Owns one model. Entering makes it resident, leaving parks it if asked to.

    A subclass gives `name` and `build`, and its own typed `__call__`.
    """

    name: ClassVar[str]

    def __init__(self, *, device: torch.device, offload: bool = False, prefetches: bool = False) -> None:
        """prefetches: `prefetch` does something. Not for where each model is to be alone on its device."""
        self.device, self.offload, self.prefetches = device, offload, prefetches
        self.module: nn.Module | None = None
        self.parked = Parked(CudaTransfer(device) if offload and device.type == "cuda" else None)
        self.costs = Costs()
        self._resident = False
        self._entered = 0.0

    def build(self) -> nn.Module:
        """The module, filled, on `self.device`. Called once per process, again only if that failed."""
        raise NotImplementedError(f"{type(self).__name__}.build")

    def prefetch(self, *, reserve: int = RESERVE) -> None:
        """Begins to bring a parked module back, beside whatever the device does next.

        Nothing happens unless the stage `prefetches`, was parked before, and fits beside `reserve` bytes that
        stay free for the others. Enter the stage to use it, or `park` it if it is not needed after all.
        """
        if self.prefetches and self.offload and self.module is not None and not self._resident:
            self.parked.prefetch(reserve=reserve)

    def reside(self) -> None:
        """Makes the module resident: builds it at first, afterwards copies a parked one to the device."""
        if self._resident:
            return
        started = time.perf_counter()
        if self.module is None:
            self.module = self._built()
        else:
            self.parked.restore()
        self._resident = True
        self._synchronize()
        self.costs.load_seconds += time.perf_counter() - started
        logger.info("%s resident after %.1f s", self.name, time.perf_counter() - started)

    def park(self) -> None:
        """Frees the device's memory if the stage is offloaded; a prefetch that is under way is dropped."""
        if self.offload and (self._resident or self.parked.is_arriving):
            self._resident = False
            self.parked.release()

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._entered = time.perf_counter()
        try:
            self.reside()
        except BaseException as error:
            self._sign(error)
            self.park()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._sign(error)
        try:
            self._synchronize()
            self._count()
        finally:
            self.park()

    def _built(self) -> nn.Module:
        """A module whose host copy fails is not kept: it could be neither parked nor built again."""
        module = self.build()
        if self.offload:
            self.parked.keep(module)
        return module

    def _count(self) -> None:
        self.costs.seconds += time.perf_counter() - self._entered
        if self.device.type == "cuda":
            peak, reserved = (
                torch.cuda.max_memory_allocated(self.device),
                torch.cuda.max_memory_reserved(self.device),
            )
            self.costs.peak_bytes = max(self.costs.peak_bytes, peak)
            self.costs.peak_reserved_bytes = max(self.costs.peak_reserved_bytes, reserved)

    def _sign(self, error: BaseException | None) -> None:
        """See stage_without_memory; the innermost stage's name stays."""
        if isinstance(error, torch.OutOfMemoryError):
            vars(error).setdefault(_SIGNATURE, self.name)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
