import pickle
import random

import pytest
import torch
from torch import nn

from cosmos_nemo.stages.base import Stage, stage_without_memory
from cosmos_nemo.stages.parked import Parked
from tests.unit.stages.test_parked import FakeTransfer


class Counted(Stage):
    name = "counted"

    def __init__(self, *, offload: bool) -> None:
        super().__init__(device=torch.device("cpu"), offload=offload)
        self.builds = 0

    def build(self) -> nn.Module:
        self.builds += 1
        module = nn.Linear(3, 2)
        module.register_buffer("table", torch.arange(4.0), persistent=False)
        return module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert self.module is not None
        return self.module(x) + self.module.table.sum()  # type: ignore[operator, union-attr]


def test_a_stage_is_built_once_and_stays_when_nothing_is_offloaded() -> None:
    stage = Counted(offload=False)
    for _ in range(2):
        with stage as resident:
            resident(torch.ones(3))
    assert stage.builds == 1
    assert stage.module is not None and stage.module.weight.numel() == 6  # type: ignore[operator, union-attr]


def test_an_offloaded_stage_is_parked_between_uses_and_gives_the_same_result() -> None:
    stage = Counted(offload=True)
    with stage as resident:
        before = resident(torch.ones(3))
    assert stage.module is not None
    assert [t.numel() for t in (*stage.module.parameters(), *stage.module.buffers())] == [0, 0, 0]
    with stage as resident:
        after = resident(torch.ones(3))
    assert stage.builds == 1
    assert torch.equal(before, after)


def test_an_offloaded_stage_is_parked_when_the_call_raises() -> None:
    stage = Counted(offload=True)
    with pytest.raises(KeyError), stage:
        raise KeyError("inside")
    assert stage.module is not None
    assert all(parameter.numel() == 0 for parameter in stage.module.parameters())


def test_use_of_a_parked_module_fails_at_once() -> None:
    stage = Counted(offload=True)
    with stage:
        pass
    with pytest.raises(RuntimeError):
        stage(torch.ones(3))


def test_costs_add_up_over_uses() -> None:
    stage = Counted(offload=True)
    with stage:
        pass
    first = stage.costs.seconds
    with stage:
        pass
    assert stage.costs.seconds > first > 0
    assert 0 < stage.costs.load_seconds <= stage.costs.seconds


class Journalled(Stage):
    """Its weights get to the "device" by a fake transfer, late; the journal has every copy."""

    name = "journalled"

    def __init__(self, *, offload: bool = True, prefetches: bool = True) -> None:
        super().__init__(device=torch.device("cpu"), offload=offload, prefetches=prefetches)
        self.transfer = FakeTransfer()
        self.parked = Parked(self.transfer)
        self.builds = 0

    @property
    def copies(self) -> int:
        return self.transfer.journal.count("start")

    def build(self) -> nn.Module:
        self.builds += 1
        generator = torch.Generator().manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 4))
        module[2].weight = module[0].weight
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        return module

    def weights(self) -> list[torch.Tensor]:
        assert self.module is not None
        return [parameter.detach().clone() for parameter in self.module.parameters()]


class Lazy(Journalled):
    """Resident only once it is called, as the text encoder is."""

    def reside(self) -> None:
        """Nothing yet."""

    def __call__(self) -> list[torch.Tensor]:
        super().reside()
        return self.weights()


def parked_once(stage: Journalled) -> list[torch.Tensor]:
    """Its weights, after the first use."""
    with stage:
        if isinstance(stage, Lazy):
            stage()
        return stage.weights()


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_a_prefetched_stage_is_entered_without_another_copy() -> None:
    stage = Journalled()
    wanted = parked_once(stage)
    stage.prefetch()
    with stage:
        assert same(stage.weights(), wanted)
        assert stage.module[0].weight.data_ptr() == stage.module[2].weight.data_ptr()
    assert stage.transfer.journal == ["host", "released", "start", "wait", "released"]


def test_a_stage_that_is_not_told_to_prefetch_copies_on_entering() -> None:
    stage = Journalled(prefetches=False)
    wanted = parked_once(stage)
    stage.prefetch()
    assert stage.copies == 0
    with stage:
        assert same(stage.weights(), wanted)
    assert stage.copies == 1


def test_nothing_is_prefetched_before_the_first_build_nor_while_resident_nor_without_offload() -> None:
    new, kept = Journalled(), Journalled(offload=False)
    new.prefetch()
    with new, kept:
        new.prefetch()
    kept.prefetch()
    assert new.copies == kept.copies == 0
    assert not new.parked.is_arriving and not kept.parked.is_arriving


def test_a_prefetched_stage_that_is_not_needed_is_parked_again() -> None:
    stage = Journalled()
    wanted = parked_once(stage)
    stage.prefetch()
    stage.park()
    assert not stage.parked.is_arriving and stage.weights()[0].numel() == 0
    with stage:
        assert same(stage.weights(), wanted)
    assert stage.copies == 2


def test_a_lazy_stage_that_was_prefetched_for_nothing_lets_go_when_it_is_left() -> None:
    stage = Lazy()
    wanted = parked_once(stage)
    stage.prefetch()
    with stage:
        pass
    assert not stage.parked.is_arriving
    stage.prefetch()
    with stage:
        assert same(stage(), wanted)
    assert stage.copies == 2


def test_the_caller_says_how_much_stays_free() -> None:
    stage = Journalled()
    parked_once(stage)
    stage.transfer.free = 2**20
    stage.prefetch(reserve=2**20)
    assert not stage.parked.is_arriving
    stage.prefetch(reserve=0)
    assert stage.parked.is_arriving


def test_a_stage_is_built_again_if_no_host_copy_could_be_made() -> None:
    stage = Journalled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.transfer, "host_buffer", lambda num_bytes: [].pop())
        with pytest.raises(IndexError), stage:
            raise AssertionError("entered")
    assert stage.module is None
    parked_once(stage)
    with stage:
        assert stage.weights()[0].numel() == 12
    assert stage.builds == 2


def test_a_stage_whose_copy_finds_no_memory_can_be_entered_later() -> None:
    stage = Journalled()
    wanted = parked_once(stage)
    stage.transfer.is_full = True
    with pytest.raises(torch.OutOfMemoryError), stage:
        raise AssertionError("entered")
    stage.transfer.is_full = False
    with stage:
        assert same(stage.weights(), wanted)


def test_an_error_of_the_devices_memory_names_the_innermost_stage_on_other_ranks_too() -> None:
    inner, outer = Counted(offload=True), Journalled()
    with pytest.raises(torch.OutOfMemoryError) as caught, outer, inner:
        raise torch.OutOfMemoryError("full")
    assert stage_without_memory(caught.value) == "counted"
    assert stage_without_memory(pickle.loads(pickle.dumps(caught.value))) == "counted"


def test_it_names_the_stage_that_is_entered_too() -> None:
    stage = Journalled()
    parked_once(stage)
    stage.transfer.is_full = True
    with pytest.raises(torch.OutOfMemoryError) as caught, stage:
        raise AssertionError("entered")
    assert stage_without_memory(caught.value) == "journalled"


def test_other_errors_and_those_outside_of_stages_name_none() -> None:
    with pytest.raises(RuntimeError) as caught, Counted(offload=False):
        raise RuntimeError("inside")
    assert stage_without_memory(caught.value) is None
    assert stage_without_memory(torch.OutOfMemoryError("full")) is None


@pytest.mark.parametrize("prefetched", [True, False])
def test_a_stage_is_parked_if_the_device_fails_on_entering(
    prefetched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Journalled()
    wanted = parked_once(stage)
    if prefetched:
        stage.prefetch()
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_synchronize", lambda: (_ for _ in ()).throw(RuntimeError("device")))
        with pytest.raises(RuntimeError, match="device"), stage:
            raise AssertionError("entered")
    assert {weight.numel() for weight in stage.weights()} == {0}
    assert not stage.parked.is_arriving
    with stage:
        assert same(stage.weights(), wanted)


def test_a_stage_is_parked_even_if_the_device_fails_on_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Journalled()
    with pytest.raises(RuntimeError, match="device"), stage:
        monkeypatch.setattr(stage, "_synchronize", lambda: (_ for _ in ()).throw(RuntimeError("device")))
    assert stage.weights()[0].numel() == 0


@pytest.mark.parametrize("kind", [Journalled, Lazy])
@pytest.mark.parametrize("seed", range(15))
def test_weights_survive_any_sequence_of_uses_prefetches_and_failures(
    kind: type[Journalled], seed: int
) -> None:
    chosen, stage = random.Random(seed), kind()
    wanted = parked_once(stage)
    for _ in range(30):
        stage.transfer.is_full = chosen.random() < 0.2
        step = chosen.choice(["prefetch", "park", "use", "raise"])
        if step in ("prefetch", "park"):
            getattr(stage, step)()
            continue
        try:
            with stage, torch.inference_mode(chosen.random() < 0.5):
                if isinstance(stage, Lazy) and chosen.random() < 0.3:
                    continue
                assert same(stage() if isinstance(stage, Lazy) else stage.weights(), wanted)
                if step == "raise":
                    raise KeyError("inside")
        except torch.OutOfMemoryError:
            assert stage.transfer.is_full
        except KeyError:
            assert step == "raise"
        assert {weight.numel() for weight in stage.weights()} == {0}
        assert not stage.parked.is_arriving
    assert stage.builds == 1
