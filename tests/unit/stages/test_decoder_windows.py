from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cosmos_nemo.stages.decoder_windows import assemble, blend, own_frames, split_windows


@pytest.mark.parametrize(
    ("num_frames", "orders"),
    [
        (1, ["00000000"]),
        (2, ["01010101"]),
        (3, ["01210121"]),
        (5, ["01234321"]),
        (7, ["01234565"]),
        (8, ["01234567"]),
        (9, ["01234567", "67876787"]),
        (14, ["01234567", "6789abcd"]),
        (15, ["01234567", "6789abcd", "cdedcded"]),
        (17, ["01234567", "6789abcd", "cdefgfed"]),
    ],
)
def test_windows_overlap_by_two_and_the_last_goes_back_and_forth(num_frames: int, orders: list[str]) -> None:
    wanted = [[int(frame, 36) for frame in order] for order in orders]
    assert split_windows(num_frames) == wanted


@pytest.mark.parametrize("num_frames", range(1, 18))
def test_every_frame_is_in_a_window_once_but_for_the_overlap(num_frames: int) -> None:
    orders = split_windows(num_frames)
    assert all(len(order) == 8 for order in orders)
    own = [order[: own_frames(order)] for order in orders]
    assert own[0][0] == 0 and own[-1][-1] == num_frames - 1
    for earlier, later in pairwise(own):
        assert earlier[-2:] == later[:2]
        assert len(later) > 2, "a window that adds nothing"
    assert own[0] + [frame for later in own[1:] for frame in later[2:]] == list(range(num_frames))


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="0 latent frames"):
        split_windows(0)


def test_one_window_fades_into_the_next() -> None:
    first, second = torch.zeros(5, 2), torch.ones(6, 2)
    found = blend([first, second], 3)
    assert found[:, 0].tolist() == [0, 0, 0, 0.5, 1, 1, 1, 1]
    assert torch.equal(found[:, 0], found[:, 1])
    assert blend([first, second], 1)[:, 0].tolist() == [0] * 5 + [1] * 5
    assert torch.equal(blend([first], 3), first)


def test_a_blend_of_integers_is_rounded() -> None:
    first, second = torch.full((3,), 10, dtype=torch.uint8), torch.full((3,), 21, dtype=torch.uint8)
    assert blend([first, second], 3).tolist() == [10, 16, 21]
    assert blend([second, first], 3).dtype == torch.uint8


def clip(first: int, count: int) -> Tensor:
    """Frames numbered from `first` by their brightness, as they would be of a decoder without fault."""
    numbers = torch.arange(first, first + count, dtype=torch.uint8)
    return numbers[:, None, None, None].expand(count, 2, 3, 3).clone()


@pytest.mark.parametrize("num_frames", range(1, 18))
@pytest.mark.parametrize("cut", [True, False])
def test_windows_that_agree_make_the_video_they_were_cut_from(num_frames: int, cut: bool) -> None:
    """The latent's frame t is video frame 8 t alone where a window begins with it, else the 8 up to that."""
    windows = []
    for order in split_windows(num_frames):
        length = max(own_frames(order), 2) if cut else len(order)
        windows.append(clip(8 * order[0], 8 * length - 7))
    video = assemble(windows, latent_frames=num_frames)
    assert video.dtype == torch.uint8
    assert video[:, 0, 0, 0].tolist() == list(range(8 * num_frames - 7))


def test_windows_that_differ_fade_over_the_nine_frames_they_share() -> None:
    dark, bright = torch.zeros(57, 2, 2, 3, dtype=torch.uint8), torch.full((57, 2, 2, 3), 240).byte()
    video = assemble([dark, bright], latent_frames=14)[:, 0, 0, 0].tolist()
    assert video == [0] * 48 + list(range(0, 241, 30)) + [240] * 48
