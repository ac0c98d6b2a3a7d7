"""Parking on a GPU: weights come back bit for bit, memory is freed, the host copy is pinned and no larger."""

import gc
import logging
import random

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.parked import CudaTransfer

pytestmark = pytest.mark.gpu
MIB = 2**20
WIDTH, LAYERS = 2048, 8
NUM_BYTES = LAYERS * WIDTH * WIDTH * 2


class Tied(nn.Module):
    """A stack whose first and last matrices are one: NUM_BYTES, and a few more for two buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head.weight = self.layers[0].weight
        self.register_buffer("angles", torch.arange(5.0), persistent=False)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x) * self.scale + self.angles.sum().to(x)


class Stack(Stage):
    name = "stack"

    def __init__(self, *, seed: int = 0, offload: bool = True, prefetches: bool = True) -> None:
        super().__init__(device=torch.device("cuda", 0), offload=offload, prefetches=prefetches)
        self.seed = seed

    def build(self) -> nn.Module:
        with torch.device(self.device):
            module = Tied().bfloat16().requires_grad_(False)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        for parameter in module.parameters():
            parameter.normal_(0, WIDTH**-0.5, generator=generator)
        return module

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        assert self.module is not None
        generator = torch.Generator(self.device).manual_seed(99)
        x = torch.randn(64, WIDTH, device=self.device, dtype=torch.bfloat16, generator=generator)
        return self.module(x).cpu()

    def tensors(self) -> list[Tensor]:
        assert self.module is not None
        return [*self.module.parameters(), *self.module.buffers()]


@pytest.fixture(autouse=True)
def _workspace() -> None:
    """cuBLAS takes its own memory with the first product, and keeps it."""
    x = torch.ones(64, WIDTH, device="cuda", dtype=torch.bfloat16)
    (x @ torch.ones(WIDTH, WIDTH, device="cuda", dtype=torch.bfloat16)).sum().item()


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(0)


def work(seconds_of_spinning: float = 0.05) -> None:
    """Keeps the current stream busy, so that what is not waited for is still to come."""
    torch.cuda._sleep(int(seconds_of_spinning * 1e9))


def test_a_stage_comes_back_bit_for_bit_and_frees_the_device_between() -> None:
    stage, before = Stack(), allocated()
    with stage:
        wanted, output = [tensor.clone().cpu() for tensor in stage.tensors()], stage()
    for _ in range(3):
        assert allocated() - before < MIB
        with stage:
            assert allocated() - before < NUM_BYTES + 4 * MIB, "tied weights were doubled"
            assert all(
                torch.equal(tensor.cpu(), value)
                for tensor, value in zip(stage.tensors(), wanted, strict=True)
            )
            assert stage.module.head.weight.data_ptr() == stage.module.layers[0].weight.data_ptr()
            assert torch.equal(stage(), output)
    assert stage.costs.peak_reserved_bytes >= stage.costs.peak_bytes >= NUM_BYTES


def test_the_host_copy_is_pinned_and_as_large_as_the_weights() -> None:
    stage = Stack()
    with stage:
        pass
    host = stage.parked._host
    assert host is not None and host.is_pinned()
    assert NUM_BYTES <= stage.parked.num_bytes <= NUM_BYTES + 2 * 512


def test_memory_that_is_unpinned_can_be_pinned_again() -> None:
    transfer = CudaTransfer(torch.device("cuda"))
    for _ in range(5):
        host = transfer.host_buffer(300 * MIB)
        assert host.is_pinned()
        del host
        gc.collect()


def test_a_refused_pin_leaves_a_slower_copy_and_no_error_for_the_next_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = torch.cuda.cudart()

    class Refusing:
        def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
            # The address of nothing: a real failure, which CUDA remembers.
            return int(runtime.cudaHostRegister(0, size, flags))

    stage = Stack()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(torch.cuda, "cudart", Refusing)
        with stage:
            output = stage()
    assert "does not pin" in caplog.text
    assert stage.parked._host is not None and not stage.parked._host.is_pinned()
    stage.prefetch(reserve=0)
    assert not stage.parked.is_arriving
    with stage:
        assert torch.equal(stage(), output)


def test_a_prefetch_beside_a_busy_stream_is_waited_for() -> None:
    stage, other = Stack(), Stack(seed=1)
    with stage:
        output = stage()
    with other:
        wanted = other()
    for _ in range(5):
        other.prefetch(reserve=0)
        with stage:  # leaving it empties the allocator's cache while the other one arrives
            stage.prefetch(reserve=0)
            assert torch.equal(stage(), output)
        assert other.parked.is_arriving
        with other:
            assert torch.equal(other(), wanted)


def test_memory_of_a_dropped_prefetch_is_free_and_may_be_used_at_once() -> None:
    stage, before = Stack(), allocated()
    with stage:
        output = stage()
    for _ in range(5):
        work()
        stage.prefetch(reserve=0)
        stage.park()
        taken = torch.full((NUM_BYTES // 2,), 3.0, dtype=torch.bfloat16, device="cuda")
        assert bool((taken == 3).all()), "the dropped copy wrote into memory that has a new owner"
        del taken
    assert allocated() - before < MIB
    with stage:
        assert torch.equal(stage(), output)


def test_nothing_is_prefetched_into_memory_that_others_need() -> None:
    stage = Stack()
    with stage:
        pass
    before = allocated()
    free, _ = torch.cuda.mem_get_info(0)
    stage.prefetch(reserve=free - NUM_BYTES // 2)
    assert not stage.parked.is_arriving and allocated() == before
    stage.prefetch(reserve=free // 4)
    assert stage.parked.is_arriving and allocated() >= before + NUM_BYTES
    stage.park()


@pytest.mark.parametrize("seed", range(5))
def test_outputs_are_the_same_after_any_sequence(seed: int) -> None:
    chosen = random.Random(seed)
    stages = [Stack(seed=i) for i in range(2)]
    wanted = []
    for stage in stages:
        with stage:
            wanted.append(stage())
    for _ in range(20):
        i = chosen.randrange(2)
        step = chosen.choice(["prefetch", "park", "use", "raise", "spin"])
        if step == "spin":
            work(0.01)
        elif step == "prefetch":
            stages[i].prefetch(reserve=0)
        elif step == "park":
            stages[i].park()
        else:
            try:
                with stages[i]:
                    assert torch.equal(stages[i](), wanted[i])
                    if step == "raise":
                        raise KeyError("inside")
            except KeyError:
                assert step == "raise"


def test_a_stage_used_on_another_stream_finds_its_weights() -> None:
    stage = Stack()
    with stage:
        output = stage()
    stage.prefetch(reserve=0)
    with torch.cuda.stream(torch.cuda.Stream()), stage:
        assert torch.equal(stage(), output)
