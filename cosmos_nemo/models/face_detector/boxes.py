"""Boxes around faces: the priors, how the network's offsets move them, and which of many to keep.

B pictures, P prior boxes, N boxes. Corners are (left, top, right, bottom).
"""

import math

import torch
from torch import Tensor

CELL_SIZES = (8, 16, 32)
"""Pixels between neighbouring cells on each level."""
_PRIOR_SIZES = ((16, 32), (64, 128), (256, 512))
"""Sides in pixels of the square priors at each cell of a level."""
BOXES_PER_CELL = 2
_CENTRE_VARIANCE, _SIZE_VARIANCE = 0.1, 0.2


def prior_boxes(height: int, width: int) -> Tensor:
    """Centre x, centre y, width, height [P, 4] as fractions of the picture; level by level, row by row."""
    levels = [
        _level_priors(height, width, cell=cell, sides=sides)
        for cell, sides in zip(CELL_SIZES, _PRIOR_SIZES, strict=True)
    ]
    return torch.cat(levels).float()


def _level_priors(height: int, width: int, *, cell: int, sides: tuple[int, ...]) -> Tensor:
    """Float64. The last row and column of cells may reach beyond the picture."""
    y = (torch.arange(math.ceil(height / cell), dtype=torch.float64) + 0.5) * cell / height
    x = (torch.arange(math.ceil(width / cell), dtype=torch.float64) + 0.5) * cell / width
    side = torch.tensor(sides, dtype=torch.float64)
    centre_y, centre_x, side = torch.meshgrid(y, x, side, indexing="ij")
    return torch.stack((centre_x, centre_y, side / width, side / height), dim=-1).reshape(-1, 4)


def decode(offsets_BP4: Tensor, priors_P4: Tensor) -> Tensor:
    """Corners [B, P, 4], as fractions of the picture, of the priors moved by the network's offsets.

    The offsets are those of SSD (Liu et al. 2016, arXiv:1512.02325): centres in prior sizes, logarithms of
    sizes, both scaled by a variance. Infinite where the logarithm is too large.
    """
    prior_centre, prior_size = priors_P4[:, :2], priors_P4[:, 2:]
    centre = prior_centre + offsets_BP4[..., :2] * _CENTRE_VARIANCE * prior_size
    size = prior_size * torch.exp(offsets_BP4[..., 2:] * _SIZE_VARIANCE)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def non_maximum_suppression(boxes_N4: Tensor, scores_N: Tensor, *, max_overlap: float) -> Tensor:
    """Indices of the boxes to keep, highest score first: none overlaps a kept one of higher score by more.

    boxes_N4: corners in pixels. A box holds its corner pixels, as in Fast R-CNN: its sides are one pixel
    longer than the corners' difference. Overlap is intersection over union. Faster on the CPU.
    """
    left, top, right, bottom = boxes_N4.unbind(dim=1)
    areas = (right - left + 1) * (bottom - top + 1)
    waiting = scores_N.argsort(descending=True, stable=True)
    kept = []
    while len(waiting) > 0:
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        columns = torch.minimum(right[best], right[waiting]) - torch.maximum(left[best], left[waiting]) + 1
        rows = torch.minimum(bottom[best], bottom[waiting]) - torch.maximum(top[best], top[waiting]) + 1
        shared = columns.clamp(min=0) * rows.clamp(min=0)
        overlaps = shared / (areas[best] + areas[waiting] - shared)
        waiting = waiting[overlaps <= max_overlap]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long, device=scores_N.device)
