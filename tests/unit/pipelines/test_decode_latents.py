"""Which ranks decode what, with a tokenizer that only takes notes; tests/parallel decodes for real."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_nemo.parallel import rank_zero
from cosmos_nemo.pipelines.base import decode_latents
from tests.fakes import FakeGroup, RecordedStage, RecordedTokenizer


def latents(*lengths: int) -> list[Tensor]:
    return [torch.ones(1, 16, length, 1, 1) for length in lengths]


def decoded(tokenizer: RecordedTokenizer, group: FakeGroup, *lengths: int, **options: Any) -> list[Any]:
    return decode_latents(tokenizer, latents(*lengths), group, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """As each of several ranks sees it."""
    monkeypatch.setattr(rank_zero, "_broadcast_object", lambda value, group: (None, None))
    monkeypatch.setattr(rank_zero.dist, "all_gather_object", lambda failures, error, group: None)
    monkeypatch.setattr(rank_zero.dist, "all_reduce", lambda answer, how, group: None)


def test_one_rank_decodes_all_and_fetches_what_follows_meanwhile() -> None:
    journal: list[str] = []
    following = RecordedStage("guard", journal, offload=True)
    first, second = decoded(RecordedTokenizer(journal), FakeGroup(1, 0), 2, 3, following=following)
    assert (len(first), len(second)) == (9, 17)
    order = [journal.index(name) for name in ("tokenizer.enter", "guard.prefetch", "tokenizer.exit")]
    assert order == sorted(order)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_have_a_piece_enter_and_the_first_has_the_frames(rank: int) -> None:
    tokenizer = RecordedTokenizer([], together=2)
    long, short = decoded(tokenizer, FakeGroup(3, rank), 2, 1)
    assert (long is None, short is None) == (rank == 1, rank == 1)
    assert len(tokenizer.latents) == (2 if rank == 0 else 1)
    assert not tokenizer.holds_weights


def test_a_rank_without_a_piece_loads_nothing() -> None:
    tokenizer = RecordedTokenizer([], together=2)
    assert decoded(tokenizer, FakeGroup(3, 2), 2, 1) == [None, None]
    assert tokenizer.module is None and not tokenizer.latents


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("lacks", [0, 1])
def test_the_first_rank_decodes_alone_where_any_lacks_the_memory_to_do_it_together(
    monkeypatch: pytest.MonkeyPatch, rank: int, lacks: int
) -> None:
    answers: list[int] = []

    def least(answer: Tensor, how: Any, group: FakeGroup) -> None:
        assert how == dist.ReduceOp.MIN
        answers.append(int(answer))
        answer.fill_(0)

    monkeypatch.setattr(rank_zero.dist, "all_reduce", least)
    tokenizer = RecordedTokenizer([], together=2)
    tokenizer.has_memory = rank != lacks
    frames = decoded(tokenizer, FakeGroup(3, rank), 2, 3)
    assert answers == [int(rank != lacks)]
    assert len(tokenizer.latents) == (2 if rank == 0 else 0)
    assert [each is None for each in frames] == [rank > 0] * 2


def test_what_loading_raises_on_another_rank_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_failed(failures: list[Exception | None], error: Any, group: FakeGroup) -> None:
        failures[:] = [None, OSError("no such tokenizer")]

    monkeypatch.setattr(rank_zero.dist, "all_gather_object", other_failed)
    tokenizer = RecordedTokenizer([], together=2)
    with pytest.raises(OSError, match="no such tokenizer"):
        decoded(tokenizer, FakeGroup(2, 0), 2)
    assert not tokenizer.latents
