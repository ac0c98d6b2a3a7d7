import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.models.common import causal
from cosmos_nemo.models.common.causal import Carry, RanksCarry, repeat_first, zeros_before
from tests.fakes import FakeGroup

CONV = nn.Identity()


def clip(frames: int) -> Tensor:
    """Not zeros: frames of 1, 2, 3 and so on."""
    return torch.arange(1.0, frames + 1)[:, None, None].expand(1, 4, frames, 2, 3).clone()


def seen(carry: Carry, *pieces: Tensor) -> list[list[float]]:
    """What each piece's convolution sees before it, by the values of the frames."""
    found = []
    for piece in pieces:
        found.append(carry.before(CONV, piece)[0, 0, :, 0, 0].tolist())
        carry.is_first = isinstance(carry, RanksCarry) and carry.is_first
    return found


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([2, 1, 1, 2], [[0, 0], [1, 2], [2, 3], [3, 4]]),
        ([0, 1, 2], [[0, 0], [0, 0], [0, 1]]),
        ([1, 0, 0, 1, 3], [[0, 0], [0, 1], [0, 1], [0, 1], [1, 2]]),
        ([4, 0, 1], [[0, 0], [3, 4], [3, 4]]),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_each_piece_sees_the_two_frames_before_it_and_no_frames_hand_on_what_they_saw(
    sizes: list[int], expected: list[list[float]], memory_format: torch.memory_format
) -> None:
    whole = clip(sum(sizes)).contiguous(memory_format=memory_format)
    assert seen(Carry(zeros_before), *whole.split(sizes, dim=2)) == expected


def test_a_clip_may_begin_with_its_first_frame_twice() -> None:
    assert seen(Carry(repeat_first), *clip(3).split([1, 2], dim=2)) == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("frames", "handed_on"), [(0, [0.0, 0.0]), (1, [0.0, 1.0]), (2, [1.0, 2.0]), (3, [2.0, 3.0])]
)
def test_the_first_rank_hands_on_what_is_missing_too(
    frames: int, handed_on: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Tensor] = []

    def send(mine: Tensor, group: object, *, is_first: bool, is_last: bool) -> None:
        assert is_first and not is_last and mine.is_contiguous()
        sent.append(mine.movedim(-1, 1))

    monkeypatch.setattr(causal, "hand_on", send)
    group: object = FakeGroup(2, 0)
    carry = RanksCarry(zeros_before, group, num_pieces=2)  # type: ignore[arg-type]
    assert seen(carry, clip(frames)) == [[0, 0]]
    assert [frame[0, 0, :, 0, 0].tolist() for frame in sent] == [handed_on]


def test_a_rank_alone_sends_nothing() -> None:
    group: object = FakeGroup(3, 0)
    carry = RanksCarry(zeros_before, group, num_pieces=1)  # type: ignore[arg-type]
    assert seen(carry, clip(0)) == seen(carry, clip(3)) == [[0, 0]]
