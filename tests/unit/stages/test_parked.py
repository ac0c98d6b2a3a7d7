import gc
import random
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.stages.parked import CudaTransfer, Parked

CPU = torch.device("cpu")


class LateArrival:
    """A buffer full of NaNs, until somebody waits for it."""

    def __init__(self, host: Tensor, journal: list[str]) -> None:
        self.host, self.journal = host, journal
        self.buffer = torch.full_like(host, 255)

    def wait(self) -> Tensor:
        self.journal.append("wait")
        return self.buffer.copy_(self.host)


class FakeTransfer:
    """A second memory on the CPU, in the part of the device's: as late as a copy on another stream."""

    device = CPU

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.free = 2**40
        self.is_full = False

    def host_buffer(self, num_bytes: int) -> Tensor:
        self.journal.append("host")
        return torch.full((num_bytes,), 170, dtype=torch.uint8)

    def can_prefetch(self, host: Tensor, *, reserve: int) -> bool:
        return self.free - reserve >= host.numel()

    def start(self, host: Tensor) -> LateArrival:
        if self.is_full:
            raise torch.OutOfMemoryError("full")
        self.journal.append("start")
        return LateArrival(host, self.journal)

    def released(self) -> None:
        self.journal.append("released")


class Odd(nn.Module):
    """One tensor of every kind that a model may have."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.small = nn.Parameter(torch.randn(7).bfloat16(), requires_grad=False)
        whole = torch.randn(6, 8, dtype=torch.float64)
        self.register_buffer("rows", whole[2:4], persistent=False)
        self.register_buffer("column", whole[:, 3])
        self.register_buffer("transposed", torch.randn(3, 2).t())
        self.register_buffer("expanded", torch.randn(1, 3).expand(4, 3))
        self.register_buffer("nothing", torch.empty(0, 4))
        self.register_buffer("angles", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("none", None)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters()) | dict(self.named_buffers())


@pytest.fixture(params=["with a transfer", "in place"])
def parked(request: pytest.FixtureRequest) -> Parked:
    return Parked(FakeTransfer() if request.param == "with a transfer" else None)


@pytest.fixture(params=[False, True], ids=["normal", "inference"])
def odd(request: pytest.FixtureRequest) -> Iterator[Odd]:
    with torch.inference_mode(request.param):
        module = Odd()
    yield module


def picture(module: Odd) -> dict[str, tuple[object, ...]]:
    """All that can be seen of each tensor, its values as bytes."""
    return {
        name: (
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            tensor.requires_grad,
            tensor.is_inference(),
            type(tensor),
            tensor.detach().contiguous().flatten().view(torch.uint8).tolist(),
        )
        for name, tensor in module.tensors().items()
    }


def test_every_kind_of_tensor_comes_back_as_it_was(odd: Odd, parked: Parked) -> None:
    before, tensors = picture(odd), odd.tensors()
    parked.keep(odd)
    for inside in (False, True, False):
        with torch.inference_mode(inside):
            parked.release()
            assert {tuple(tensor.shape) for tensor in odd.tensors().values()} == {(0,)}
            parked.restore()
        assert picture(odd) == before
    assert all(tensor is tensors[name] for name, tensor in odd.tensors().items())


def test_tied_weights_have_one_copy_and_are_one_memory_again(odd: Odd, parked: Parked) -> None:
    parked.keep(odd)
    for _ in range(2):
        parked.release()
        parked.restore()
    assert odd.head.weight is odd.table.weight
    assert odd.head.weight.data_ptr() == odd.table.weight.data_ptr() != 0
    with torch.inference_mode():
        odd.table.weight[0, 0] = 7
        assert odd.head.weight[0, 0] == 7


def test_two_tensors_that_share_memory_share_it_again(odd: Odd, parked: Parked) -> None:
    parked.keep(odd)
    parked.release()
    parked.restore()
    with torch.inference_mode():
        odd.rows[1, 3] = -5
        assert odd.column[3] == -5


def test_the_host_copy_is_as_large_as_the_weights_and_no_larger() -> None:
    module = nn.Module()
    whole = torch.zeros(4 * 1024)
    module.first, module.tied = nn.Parameter(torch.zeros(128, 32)), nn.Parameter(torch.empty(0))
    module.tied.data = module.first.data
    module.register_buffer("slice", whole[1024:2048])
    parked = Parked(FakeTransfer())
    parked.keep(module)
    assert parked.num_bytes == 128 * 32 * 4 + 1024 * 4


def test_tensors_keep_their_alignment() -> None:
    module = nn.Module()
    for i, size in enumerate((3, 1000, 5)):
        module.register_buffer(f"b{i}", torch.zeros(size))
    parked = Parked(FakeTransfer())
    parked.keep(module)
    parked.release()
    parked.restore()
    start = module.b0.data_ptr()
    assert [(tensor.data_ptr() - start) % 512 for tensor in module.buffers()] == [0, 0, 0]


def test_without_a_transfer_nothing_is_copied() -> None:
    module, parked = nn.Linear(3, 3), Parked()
    address = module.weight.data_ptr()
    parked.keep(module)
    parked.release()
    parked.prefetch()
    assert not parked.is_arriving
    parked.restore()
    assert (parked.num_bytes, module.weight.data_ptr()) == (0, address)


def test_a_tensor_of_another_device_stays_there_and_is_emptied_all_the_same() -> None:
    module = nn.Linear(3, 2)
    module.register_buffer("far", torch.empty(3, device="meta"))
    transfer = FakeTransfer()
    transfer.device = torch.device("meta")
    parked = Parked(transfer)
    parked.keep(nn.ParameterList([module.weight]))
    assert transfer.journal == [] and parked.num_bytes == 0
    address = module.weight.data_ptr()
    parked.release()
    assert module.weight.numel() == 0
    parked.restore()
    assert module.weight.data_ptr() == address


def test_a_module_without_tensors_is_parked_too() -> None:
    transfer = FakeTransfer()
    parked = Parked(transfer)
    parked.keep(nn.GELU())
    parked.release()
    parked.prefetch()
    parked.restore()
    assert transfer.journal == ["released"]


def test_a_restored_module_computes_and_has_gradients() -> None:
    module = nn.Linear(3, 2)
    x, parked = torch.randn(4, 3), Parked(FakeTransfer())
    wanted = module(x)
    parked.keep(module)
    parked.release()
    with pytest.raises(RuntimeError):
        module(x)
    with torch.inference_mode():
        parked.restore()
    assert torch.equal(module(x), wanted)
    module(x).sum().backward()
    assert module.weight.grad is not None


def test_what_was_prefetched_is_waited_for_and_not_copied_again(odd: Odd) -> None:
    transfer = FakeTransfer()
    parked, before = Parked(transfer), picture(odd)
    parked.keep(odd)
    parked.release()
    parked.prefetch()
    assert parked.is_arriving
    parked.prefetch()
    parked.restore()
    assert not parked.is_arriving
    assert transfer.journal == ["host", "released", "start", "wait"]
    assert picture(odd) == before


def test_a_prefetch_leaves_the_reserve_free() -> None:
    transfer = FakeTransfer()
    parked = Parked(transfer)
    parked.keep(nn.Linear(8, 8, bias=False))
    parked.release()
    transfer.free = 1000 + 256 - 1
    parked.prefetch(reserve=1000)
    assert not parked.is_arriving
    transfer.free += 1
    parked.prefetch(reserve=1000)
    assert parked.is_arriving


def test_a_prefetch_without_memory_is_no_error_but_a_restore_is(odd: Odd) -> None:
    transfer = FakeTransfer()
    parked, before = Parked(transfer), picture(odd)
    parked.keep(odd)
    parked.release()
    transfer.is_full = True
    parked.prefetch()
    assert not parked.is_arriving
    with pytest.raises(torch.OutOfMemoryError):
        parked.restore()
    assert all(tensor.numel() == 0 for tensor in odd.tensors().values())
    transfer.is_full = False
    parked.restore()
    assert picture(odd) == before


def test_a_dropped_prefetch_is_copied_anew(odd: Odd) -> None:
    transfer = FakeTransfer()
    parked, before = Parked(transfer), picture(odd)
    parked.keep(odd)
    parked.release()
    parked.prefetch()
    parked.release()
    assert not parked.is_arriving
    parked.restore()
    assert transfer.journal == ["host", "released", "start", "released", "start", "wait"]
    assert picture(odd) == before


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_steps_ends_with_the_same_weights(seed: int, odd: Odd) -> None:
    chosen, transfer = random.Random(seed), FakeTransfer()
    parked, before = Parked(transfer), picture(odd)
    parked.keep(odd)
    is_resident = True
    for _ in range(30):
        transfer.is_full = chosen.random() < 0.3
        with torch.inference_mode(chosen.random() < 0.5):
            step = chosen.choice(["prefetch", "release", "restore"])
            if step == "release":
                parked.release()
                is_resident = False
            elif not is_resident and step == "prefetch":
                parked.prefetch()
            elif not is_resident:
                try:
                    parked.restore()
                    is_resident = True
                except torch.OutOfMemoryError:
                    assert transfer.is_full
        if is_resident:
            assert picture(odd) == before
        else:
            assert all(tensor.numel() == 0 for tensor in odd.tensors().values())


class FakeRuntime:
    """The part of CUDA's runtime that pins host memory."""

    def __init__(self, *, status: int = 0) -> None:
        self.status, self.pinned, self.unpinned = status, [], []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.pinned.append((address, size, flags))
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        self.unpinned.append(address)
        return 0


def with_fake_cuda(patch: pytest.MonkeyPatch, runtime: FakeRuntime) -> CudaTransfer:
    patch.setattr(torch.cuda, "cudart", lambda: runtime)
    patch.setattr(torch.cuda, "device", lambda device: nullcontext())
    patch.setattr(torch.cuda, "synchronize", lambda device: None)
    return CudaTransfer(torch.device("cuda", 0))


def test_the_host_buffer_is_pinned_in_place_at_its_exact_size_until_it_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = FakeRuntime()
    buffer = with_fake_cuda(monkeypatch, runtime).host_buffer(5_000_001)
    assert buffer.dtype == torch.uint8 and buffer.shape == (5_000_001,)
    address = buffer.data_ptr()
    assert runtime.pinned == [(address, 5_000_001, 1)] and address % 4096 == 0
    view = buffer[7:]
    view.fill_(3)
    del buffer
    gc.collect()
    assert runtime.unpinned == []
    del view
    gc.collect()
    assert runtime.unpinned == [address]


def test_a_host_buffer_that_cannot_be_pinned_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = FakeRuntime(status=2)
    transfer = with_fake_cuda(monkeypatch, runtime)
    forgotten: list[str] = []
    monkeypatch.setattr(transfer, "_forget_error", lambda: forgotten.append("error"))
    buffer = transfer.host_buffer(5000)
    buffer.fill_(1)
    assert "does not pin" in caplog.text and "(error 2)" in caplog.text
    assert forgotten == ["error"]
    del buffer
    gc.collect()
    assert runtime.unpinned == []


@pytest.mark.parametrize(
    ("is_pinned", "reserve", "expected"), [(True, 60, True), (True, 61, False), (False, 0, False)]
)
def test_a_prefetch_counts_the_allocators_unused_memory_as_free_and_needs_pinned_memory(
    monkeypatch: pytest.MonkeyPatch, is_pinned: bool, reserve: int, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 430)
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: is_pinned)
    host = torch.zeros(110, dtype=torch.uint8)
    assert CudaTransfer(torch.device("cuda", 0)).can_prefetch(host, reserve=reserve) is expected
