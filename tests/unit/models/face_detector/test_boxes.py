import pytest
import torch
from torch import Tensor

from cosmos_nemo.models.face_detector.boxes import decode, non_maximum_suppression, prior_boxes


def test_priors_of_a_small_picture_are_those_counted_by_hand() -> None:
    priors = prior_boxes(16, 24) * torch.tensor([24, 16, 24, 16])
    assert len(priors) == 2 * (2 * 3 + 1 * 2 + 1 * 1)
    assert priors[:8].tolist() == [
        [4, 4, 16, 16],
        [4, 4, 32, 32],
        [12, 4, 16, 16],
        [12, 4, 32, 32],
        [20, 4, 16, 16],
        [20, 4, 32, 32],
        [4, 12, 16, 16],
        [4, 12, 32, 32],
    ]
    assert priors[12:].tolist() == [
        [8, 8, 64, 64],
        [8, 8, 128, 128],
        [24, 8, 64, 64],  # the middle of the second cell, half of which is in the picture
        [24, 8, 128, 128],
        [16, 16, 256, 256],
        [16, 16, 512, 512],
    ]


def test_priors_of_a_full_size_frame() -> None:
    priors = prior_boxes(704, 1280)
    assert priors.shape == (2 * (88 * 160 + 44 * 80 + 22 * 40), 4) and priors.dtype == torch.float32
    assert torch.allclose(priors[-1], torch.tensor([1264 / 1280, 688 / 704, 512 / 1280, 512 / 704]))


def test_no_offset_is_the_prior_itself() -> None:
    priors = torch.tensor([[0.5, 0.25, 0.2, 0.1]])
    corners = decode(torch.zeros(2, 1, 4), priors)
    torch.testing.assert_close(corners, torch.tensor([0.4, 0.2, 0.6, 0.3]).expand(2, 1, 4))


def test_offsets_move_by_tenths_of_a_prior_and_grow_by_powers() -> None:
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.1]])
    twice = torch.log(torch.tensor(2.0)) / 0.2
    corners = decode(torch.tensor([[[5.0, -10.0, twice, 0.0]]]), priors)
    # The centre moves by half a width to 0.6 and by one height to 0.4; the width is doubled.
    torch.testing.assert_close(corners, torch.tensor([[[0.4, 0.35, 0.8, 0.45]]]))


def brute_force(boxes: Tensor, scores: Tensor, *, max_overlap: float) -> list[int]:
    """Overlap counted pixel by pixel: boxes of whole pixels, corners included."""
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top : bottom + 1, left : right + 1] = True
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        overlaps = [int((masks[i] & masks[k]).sum()) / int((masks[i] | masks[k]).sum()) for k in kept]
        if all(overlap <= max_overlap for overlap in overlaps):
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_suppression_agrees_with_counting_pixels(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 40, (60, 2), generator=draw)
    boxes = torch.cat((corner, corner + torch.randint(0, 24, (60, 2), generator=draw)), dim=1).float()
    scores = torch.randperm(60, generator=draw) / 60
    kept = non_maximum_suppression(boxes, scores, max_overlap=0.4).tolist()
    assert kept == brute_force(boxes, scores, max_overlap=0.4)
    assert 5 < len(kept) < 55


def test_an_overlap_of_just_the_allowed_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4]])  # 100 pixels, and 50 of them
    scores = torch.tensor([0.8, 0.9])
    assert non_maximum_suppression(boxes, scores, max_overlap=0.5).tolist() == [1, 0]
    assert non_maximum_suppression(boxes, scores, max_overlap=0.49).tolist() == [1]


def test_of_equal_scores_the_first_box_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9]]).expand(3, 4)
    assert non_maximum_suppression(boxes, torch.ones(3), max_overlap=0.4).tolist() == [0]


def test_no_boxes_are_suppressed_to_none() -> None:
    assert non_maximum_suppression(torch.empty(0, 4), torch.empty(0), max_overlap=0.4).tolist() == []
