import pytest
import torch
from torch import nn

from cosmos_nemo.stages.base import Stage


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
