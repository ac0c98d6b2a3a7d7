"""Work that one rank does for all, and failures that all must learn of. Collectives: every rank calls."""

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class _TensorHeader:
    shape: tuple[int, ...]
    dtype: torch.dtype
    device_type: str


def rank_zero(work: Callable[[], T], group: ProcessGroup) -> T:
    """Runs `work` on rank 0 of the group; its value, or its exception, reaches every rank.

    A tensor is broadcast as a tensor and arrives on each rank's current device of the same type;
    anything else is pickled.
    """
    if group.size() == 1:
        return work()
    value: Any = None
    error: Exception | None = None
    if group.rank() == 0:
        try:
            value = work()
        except Exception as raised:
            error = raised
    header, failure = _broadcast_object((_header_of(value), _picklable(error)), group)
    if failure is not None:
        raise error if error is not None else failure
    if isinstance(header, _TensorHeader):
        return _broadcast_tensor(value, header, group)  # type: ignore[return-value]
    return value if group.rank() == 0 else header


def only_rank_zero(work: Callable[[], T], group: ProcessGroup) -> T | None:
    """Runs `work` on rank 0 of the group, which alone gets its value; its exception reaches every rank."""
    value: list[T] = []

    def keep() -> None:
        value.append(work())

    rank_zero(keep, group)
    return value[0] if value else None


def everywhere(work: Callable[[], T], group: ProcessGroup) -> T:
    """Runs `work` on every rank; if it raises on any, the lowest such rank's exception is raised on all."""
    if group.size() == 1:
        return work()
    value: T | None = None
    error: Exception | None = None
    try:
        value = work()
    except Exception as raised:
        error = raised
    failures: list[Exception | None] = [None] * group.size()
    dist.all_gather_object(failures, _picklable(error), group=group)
    for rank, failure in enumerate(failures):
        if failure is not None:
            logger.debug("rank %d failed: %s", rank, failure)
            raise error if error is not None else failure
    return value  # type: ignore[return-value]


def on_all(is_so: bool, group: ProcessGroup, device: torch.device) -> bool:
    """Whether it is so on every rank, by a collective of the whole group on the device."""
    if group.size() == 1:
        return is_so
    answer = torch.tensor(int(is_so), device=device)
    dist.all_reduce(answer, dist.ReduceOp.MIN, group=group)
    return bool(answer)


def _header_of(value: Any) -> Any:
    """What travels by pickle: a tensor's shape and kind, or the value itself."""
    if isinstance(value, Tensor):
        return _TensorHeader(tuple(value.shape), value.dtype, value.device.type)
    return value


def _broadcast_tensor(value: Tensor | None, header: _TensorHeader, group: ProcessGroup) -> Tensor:
    if value is None:
        device = torch.device(header.device_type)  # without an index: the current GPU
        value = torch.empty(header.shape, dtype=header.dtype, device=device)
    value = value.contiguous()
    dist.broadcast(value, group=group, group_src=0)
    return value


def _broadcast_object(value: Any, group: ProcessGroup) -> Any:
    box = [value]
    dist.broadcast_object_list(box, group=group, group_src=0)
    return box[0]


def _picklable(error: Exception | None) -> Exception | None:
    """The exception itself if it survives pickling, else one that says the same."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
