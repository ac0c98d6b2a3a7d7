import pytest
import torch
from torch import nn

from cosmos_nemo.training.average import Average
from cosmos_nemo.training.update.base import Shard


def shards(*values: float) -> list[Shard]:
    return [
        Shard(f"w{i}", nn.Parameter(torch.zeros(3)), 0, 3, torch.full((3,), value))
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize("in_host_memory", [False, True])
def test_the_average_follows_the_formula_and_forgets_its_beginning(in_host_memory: bool) -> None:
    masters = shards(1.0, -2.0)
    average = Average(masters, decay=0.3, in_host_memory=in_host_memory)
    expected = [1.0, -2.0]
    for n in range(1, 8):
        for shard in masters:
            shard.master.add_(n)
        average.update(masters)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = [
            decay * old + (1 - decay) * float(s.master[0]) for old, s in zip(expected, masters, strict=True)
        ]
        for shard, value in zip(masters, expected, strict=True):
            torch.testing.assert_close(average.values[shard.name], torch.full((3,), value))
    assert average.num_updates == 7


def test_the_first_update_takes_nine_elevenths_of_the_new_weights() -> None:
    masters = shards(0.0)
    average = Average(masters, decay=0.999, in_host_memory=False)
    masters[0].master.fill_(11.0)
    average.update(masters)
    torch.testing.assert_close(average.values["w0"], torch.full((3,), 9.0))


def test_after_many_updates_the_decay_is_the_one_asked_for() -> None:
    masters = shards(0.0)
    average = Average(masters, decay=0.75, in_host_memory=False)
    average.num_updates = 10_000
    masters[0].master.fill_(1.0)
    average.update(masters)
    torch.testing.assert_close(average.values["w0"], torch.full((3,), 0.25))


def test_the_average_has_storage_of_its_own_and_leaves_the_masters_alone() -> None:
    masters = shards(4.0)
    average = Average(masters, decay=0.5, in_host_memory=True)
    assert average.values["w0"].data_ptr() != masters[0].master.data_ptr()
    masters[0].master.fill_(8.0)
    assert torch.equal(average.values["w0"], torch.full((3,), 4.0))
    average.update(masters)
    assert torch.equal(masters[0].master, torch.full((3,), 8.0))


def test_host_and_sharded_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    masters = shards(0.0, 1.0)
    here, there = (Average(masters, decay=0.9, in_host_memory=host) for host in (False, True))
    for _ in range(5):
        for shard in masters:
            shard.master.add_(torch.randn(3, generator=generator))
        here.update(masters)
        there.update(masters)
    assert all(torch.equal(here.values[name], there.values[name]) for name in ("w0", "w1"))
