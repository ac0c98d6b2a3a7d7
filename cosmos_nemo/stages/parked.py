"""Parking: one host copy of a module's weights, from which they come back to their device whenever needed.

Weights never travel back to the host: `release` frees the device's memory, `restore` copies from the host.

The host copy is one buffer, and so is what arrives on the device: one copy at the full rate of the bus. It is
ordinary memory that CUDA is asked to pin in place (cudaHostRegister), because PyTorch's own pinned memory is
rounded up to a power of two per tensor (its CachingHostAllocator): up to twice the size of the weights.
"""

import logging
import mmap
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

RESERVE = 20 * 2**30
"""Bytes of device memory that a prefetch leaves free: more than any stage needs beside its weights. Decoding
takes most: 17.8 GiB for the largest frames, as much on ranks together (docs/performance.md)."""
_ALIGNMENT = 512
"""Of the device allocator: a tensor comes back at an address as even as the one it had."""
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every CUDA context of the process


class Arrival(Protocol):
    """A copy under way to the device."""

    def wait(self) -> Tensor:
        """The buffer on the device; whatever is computed from now on finds it filled."""


class Transfer(Protocol):
    """How a module's weights get between the host and one device."""

    @property
    def device(self) -> torch.device: ...

    def host_buffer(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] on the host, uninitialised."""

    def can_prefetch(self, host: Tensor, *, reserve: int) -> bool:
        """Whether `host` can be copied beside other work, and leave `reserve` bytes of the device free."""

    def start(self, host: Tensor) -> Arrival:
        """Begins a copy of `host` to the device; torch.OutOfMemoryError if it has no room."""

    def released(self) -> None:
        """Gives memory that is in use no more back to the device."""


class Parked:
    """The host copy of one module's weights.

    Tensors that share memory, tied weights for one, have one copy and share it again when they are back.
    Where there is nothing to copy (transfer None, and whatever is not on its device) the tensors' own memory
    is the copy.
    """

    def __init__(self, transfer: Transfer | None = None) -> None:
        self._transfer = transfer
        self._host: Tensor | None = None
        self._packed: list[_Place] = []
        self._at_home: list[_AtHome] = []
        self._arrival: Arrival | None = None

    @property
    def num_bytes(self) -> int:
        """What the host copy takes, beside memory that the tensors had anyway."""
        return 0 if self._host is None else self._host.numel()

    @property
    def is_arriving(self) -> bool:
        """A prefetched copy waits to be taken."""
        return self._arrival is not None

    def keep(self, module: nn.Module) -> None:
        """Takes the host copy of a resident module; once, right after it is built.

        Its weights must not be changed, nor replaced, afterwards.
        """
        tensors = [*module.parameters(), *module.buffers()]
        travelling = [t for t in tensors if self._travels(t)]
        packed, host = self._pack(travelling)
        moved = {id(tensor) for tensor in travelling}
        self._at_home = [_AtHome.of(tensor) for tensor in tensors if id(tensor) not in moved]
        self._packed, self._host = packed, host

    def prefetch(self, *, reserve: int = RESERVE) -> None:
        """Begins to copy released weights to the device, beside other work; nothing if memory is short."""
        if self._transfer is None or self._host is None or self._arrival is not None:
            return
        if not self._transfer.can_prefetch(self._host, reserve=reserve):
            return
        try:
            self._arrival = self._start(self._transfer, self._host)
        except torch.OutOfMemoryError:
            logger.info("no memory to prefetch %.1f GiB", self.num_bytes / 2**30)

    def restore(self) -> None:
        """Makes released weights resident; torch.OutOfMemoryError leaves them released."""
        if self._transfer is not None and self._host is not None:
            arrival = self._arrival or self._start(self._transfer, self._host)
            self._arrival = None
            buffer = arrival.wait()
            for place in self._packed:
                place.fill(buffer)
        for tensor in self._at_home:
            tensor.fill()

    def release(self) -> None:
        """Empties every tensor, so that use of a parked module fails at once instead of being slow.

        A copy that is under way is dropped as well.
        """
        self._arrival = None
        tensors: list[_Place | _AtHome] = [*self._packed, *self._at_home]
        for tensor in tensors:
            tensor.empty()
        if self._transfer is not None:
            self._transfer.released()

    def _start(self, transfer: Transfer, host: Tensor) -> Arrival:
        with torch.inference_mode(False):  # a buffer may be filled in another mode than it was asked for in
            return transfer.start(host)

    def _travels(self, tensor: Tensor) -> bool:
        return self._transfer is not None and tensor.device == self._transfer.device and tensor.numel() > 0

    def _pack(self, tensors: list[Tensor]) -> "tuple[list[_Place], Tensor | None]":
        if self._transfer is None or not tensors:
            return [], None
        spans = _spans(tensors)
        with torch.inference_mode(False):
            host = self._transfer.host_buffer(spans[-1].end)
            for span in spans:
                host[span.start : span.end].copy_(span.bytes())
        return [place for span in spans for place in span.places()], host


@dataclass
class _Span:
    """The part of one device allocation that some tensors use, and where it starts in the packed buffer."""

    start: int = 0
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def first_byte(self) -> int:
        """In the allocation; rounded down, so that all tensors keep their alignment."""
        return min(_extent(tensor)[0] for tensor in self.tensors) // _ALIGNMENT * _ALIGNMENT

    @property
    def end(self) -> int:
        return self.start + max(_extent(tensor)[1] for tensor in self.tensors) - self.first_byte

    def bytes(self) -> Tensor:
        storage, device = self.tensors[0].untyped_storage(), self.tensors[0].device
        size = (self.end - self.start,)
        return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, self.first_byte, size, (1,))

    def places(self) -> "list[_Place]":
        return [
            _Place.of(tensor, first_byte=self.start + _extent(tensor)[0] - self.first_byte)
            for tensor in self.tensors
        ]


def _spans(tensors: Iterable[Tensor]) -> list[_Span]:
    """The tensors by the memory they share, one after the other; the packed buffer ends with the last."""
    by_memory: dict[int, _Span] = {}
    for tensor in tensors:
        by_memory.setdefault(tensor.untyped_storage().data_ptr(), _Span()).tensors.append(tensor)
    end = 0
    for span in by_memory.values():
        span.start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = span.end
    return list(by_memory.values())


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte that a tensor uses of its storage, and the one past the last."""
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return first * tensor.itemsize, (last + 1) * tensor.itemsize


@dataclass(frozen=True)
class _Place:
    """Where in the packed buffer a tensor's values lie, and the form it has when it is resident."""

    tensor: Tensor
    first: int
    """In elements of the tensor's own type."""
    size: torch.Size
    stride: tuple[int, ...]
    is_inference: bool

    @classmethod
    def of(cls, tensor: Tensor, *, first_byte: int) -> "_Place":
        first, rest = divmod(first_byte, tensor.itemsize)
        assert rest == 0
        return cls(tensor, first, tensor.shape, tensor.stride(), tensor.is_inference())

    def fill(self, buffer: Tensor) -> None:
        with torch.inference_mode(self.is_inference):
            form = torch.empty(0, dtype=self.tensor.dtype, device=buffer.device)
            self.tensor.data = form.set_(buffer.untyped_storage(), self.first, self.size, self.stride)

    def empty(self) -> None:
        _empty(self.tensor, is_inference=self.is_inference)


@dataclass(frozen=True)
class _AtHome:
    """A tensor whose own memory is the host copy."""

    tensor: Tensor
    values: Tensor
    is_inference: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "_AtHome":
        with torch.inference_mode(tensor.is_inference()):
            return cls(tensor, tensor.detach(), tensor.is_inference())

    def fill(self) -> None:
        with torch.inference_mode(self.is_inference):
            self.tensor.data = self.values

    def empty(self) -> None:
        _empty(self.tensor, is_inference=self.is_inference)


def _empty(tensor: Tensor, *, is_inference: bool) -> None:
    # What is assigned decides whether the tensor is one of inference mode, and it must stay what it was.
    with torch.inference_mode(is_inference):
        tensor.data = tensor.data.new_empty(0)


@dataclass(frozen=True)
class CudaArrival:
    """A buffer on a GPU, and the event after which it is filled."""

    buffer: Tensor
    filled: torch.cuda.Event

    def wait(self) -> Tensor:
        stream = torch.cuda.current_stream(self.buffer.device)
        stream.wait_event(self.filled)
        self.buffer.record_stream(stream)  # it may be another than the one it was allocated for
        return self.buffer


class CudaTransfer:
    """Copies to one GPU on a stream of its own, beside what is computed."""

    def __init__(self, device: torch.device) -> None:
        index = device.index if device.index is not None else torch.cuda.current_device()
        self.device = torch.device("cuda", index)
        self._stream: torch.cuda.Stream | None = None

    def host_buffer(self, num_bytes: int) -> Tensor:
        """Pinned where CUDA allows it, else pageable: copies are slower then, and none can be prefetched."""
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)  # 2 MiB a page instead of 4 KiB: much is pinned faster
            except OSError:
                logger.debug("this kernel has no transparent huge pages")
        buffer = torch.frombuffer(memory, dtype=torch.uint8)
        self._pin(buffer)
        return buffer

    def can_prefetch(self, host: Tensor, *, reserve: int) -> bool:
        return host.is_pinned() and free_bytes(self.device) - reserve >= host.numel()

    def start(self, host: Tensor) -> CudaArrival:
        """The buffer belongs to the current stream: what is freed there can be used again for it.

        So the copy waits for what the current stream has still to do, which may be with that very memory:
        start it before the work that it is to run beside.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        buffer = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(host, non_blocking=True)
        # A buffer that is dropped before it is filled must not be handed on, nor its memory be unmapped.
        buffer.record_stream(self._stream)
        return CudaArrival(buffer, self._stream.record_event())

    def released(self) -> None:
        """Of another module's buffer that is being filled nothing is freed: it is in use."""
        torch.cuda.empty_cache()

    def _pin(self, buffer: Tensor) -> None:
        address, runtime = buffer.data_ptr(), torch.cuda.cudart()
        with torch.cuda.device(self.device):
            status = int(runtime.cudaHostRegister(address, buffer.numel(), _PORTABLE))
            if status != 0:
                self._forget_error()
                logger.warning(
                    "CUDA does not pin %.1f GiB of host memory (error %d): offloaded weights will return "
                    "more slowly. Does this process or container have a limit on locked memory (ulimit -l)?",
                    buffer.numel() / 2**30,
                    status,
                )
                return
        # Called while the buffer's memory still exists; a process that ends unpins everything by itself.
        weakref.finalize(buffer.untyped_storage(), _unpin, address, self.device).atexit = False

    def _forget_error(self) -> None:
        """CUDA keeps a failed call's error and shows it to the next kernel, which is not to blame for it."""
        try:
            torch.zeros(1, device=self.device)
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            logger.debug("expected: %s", error)


def free_bytes(device: torch.device) -> int:
    """Of a GPU. What PyTorch's allocator holds unused counts: it gives it back before it fails."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _unpin(address: int, device: torch.device) -> None:
    torch.cuda.synchronize(device)  # a copy may be reading it
    torch.cuda.cudart().cudaHostUnregister(address)
