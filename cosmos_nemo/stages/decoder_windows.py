"""A video longer than the diffusion decoder makes at once: cut into windows that overlap, and put together.

Frames of the latent are counted as the tokenizer counts them: the first holds one video frame, each other
eight. spec/predict1-autoregressive.md, 5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos_nemo.catalog import DECODER_WINDOW

OVERLAP = 2
"""Latent frames that two windows share."""
_FRAMES_PER_LATENT = 8


def split_windows(
    num_frames: int, *, window: int = DECODER_WINDOW, overlap: int = OVERLAP
) -> list[list[int]]:
    """The latent frames that each window is made of; the last is completed by going back, and forth again.

    5 frames make one window of 0 1 2 3 4 3 2 1; a single frame is repeated. ValueError for no frame.
    """
    assert 0 < overlap < window
    if num_frames < 1:
        raise ValueError(f"A video of {num_frames} latent frames cannot be decoded: it has 1 or more.")
    starts = range(0, max(num_frames - overlap, 1), window - overlap)
    return [[start + _reflected(place, num_frames - start) for place in range(window)] for start in starts]


def own_frames(order: Sequence[int]) -> int:
    """How many of a window's latent frames, from its first, go on with the video before it goes back."""
    return sum(frame == order[0] + place for place, frame in enumerate(order))


def blend(windows_TX: Sequence[Tensor], overlap: int) -> Tensor:
    """Pieces of a video put together: over the `overlap` frames that two share one fades into the other.

    Frames are the first axis. The weights go linearly from 0 for the first of the shared frames to 1 for the
    last, as upstream's do; integers are rounded.
    """
    weights = torch.linspace(0, 1, overlap)
    whole, *others = windows_TX
    for piece in others:
        assert min(len(whole), len(piece)) >= overlap
        weight_TX = weights.to(piece.device).view(-1, *[1] * (piece.ndim - 1))
        shared = (1 - weight_TX) * whole[len(whole) - overlap :] + weight_TX * piece[:overlap]
        if not piece.is_floating_point():
            shared = shared.round()
        whole = torch.cat([whole[: len(whole) - overlap], shared.to(piece.dtype), piece[overlap:]])
    return whole


def assemble(windows_THWC: Sequence[Tensor], *, latent_frames: int, overlap: int = OVERLAP) -> Tensor:
    """Frames uint8 0..255 of a video of so many latent frames, from its windows', each decoded by itself.

    Two windows that share two latent frames share nine video frames: the first latent frame of the second
    window became one frame there, the last of the eight that it is in the first window. The published script
    blends over two video frames, puts each further window seven frames too late, and cuts off the end
    (spec/predict1-autoregressive.md, 5); of a video of one window nothing differs.
    """
    whole = blend(windows_THWC, 1 + _FRAMES_PER_LATENT * (overlap - 1))
    return whole[: 1 + _FRAMES_PER_LATENT * (latent_frames - 1)]


def _reflected(place: int, length: int) -> int:
    """`place` of a walk from 0 to length - 1, back, and so on."""
    if length == 1:
        return 0
    turn = place % (2 * (length - 1))
    return min(turn, 2 * (length - 1) - turn)
