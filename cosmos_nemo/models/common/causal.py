"""What causal convolutions over time need of the frames before a piece of a clip.

Legend: B batch, C channels, T frames, H W rows and columns.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import LOOKS_BACK
from cosmos_nemo.models.common.volumes import joined
from cosmos_nemo.parallel.neighbours import hand_on

Start = Callable[[Tensor], Tensor]
"""From a clip's first piece [B, C, T, H, W] to what a convolution sees before it, [B, C, 2, H, W]."""


def repeat_first(x_BCTHW: Tensor) -> Tensor:
    """The first frame again, as the tokenizers of Predict1 have it."""
    return x_BCTHW[:, :, :1].expand(-1, -1, LOOKS_BACK, -1, -1)


def zeros_before(x_BCTHW: Tensor) -> Tensor:
    """Zeros, as Wan's tokenizer has it. The piece may have no frames."""
    batch, channels, _, *size = x_BCTHW.shape
    return x_BCTHW.new_zeros(1, 1, LOOKS_BACK, 1, 1).expand(batch, channels, -1, *size)


class Carry:
    """The frames before this piece, at each causal convolution; of the piece before, on this rank."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.frames: dict[nn.Module, Tensor] = {}
        self.is_first = True
        """Whether this is the clip's first piece. Whoever makes the pieces says so after it."""

    def before(self, conv: nn.Module, x_BCTHW: Tensor) -> Tensor:
        """[B, C, 2, H, W], and keeps those before the next piece."""
        found = self.start(x_BCTHW) if self.is_first else self.frames[conv]
        last = _last(found, x_BCTHW)
        self.frames[conv] = last.clone() if last.untyped_storage().nbytes() > last.nbytes else last
        return found


class RanksCarry(Carry):
    """Pieces of several ranks at the same time: the frames before come from the rank before.

    Every piece but the first has as many frames as a convolution looks back, or more; of the first, Wan's
    tokenizer passes a frame by.
    """

    def __init__(self, start: Start, group: ProcessGroup, *, num_pieces: int) -> None:
        super().__init__(start)
        self.group = group
        self.is_first, self.is_last = group.rank() == 0, group.rank() == num_pieces - 1

    def before(self, conv: nn.Module, x_BCTHW: Tensor) -> Tensor:
        if self.is_first:
            found = self.start(x_BCTHW)
            if not self.is_last:
                self._hand_on(_last(found, x_BCTHW))
            return found
        assert x_BCTHW.shape[2] >= LOOKS_BACK, "a piece shorter than what a convolution looks back"
        arrived = self._hand_on(x_BCTHW[:, :, -LOOKS_BACK:])
        assert arrived is not None
        return arrived

    def _hand_on(self, last_BCTHW: Tensor) -> Tensor | None:
        """What the rank before has handed on. Frames travel with their channels last, as GPUs have them."""
        last_BTHWC = last_BCTHW.movedim(1, -1).contiguous()
        arrived = hand_on(last_BTHWC, self.group, is_first=self.is_first, is_last=self.is_last)
        return None if arrived is None else arrived.movedim(-1, 1)


def _last(before_BCTHW: Tensor, x_BCTHW: Tensor) -> Tensor:
    """The last frames of both together."""
    missing = LOOKS_BACK - x_BCTHW.shape[2]
    if missing <= 0:
        return x_BCTHW[:, :, -LOOKS_BACK:]
    return joined(before_BCTHW[:, :, LOOKS_BACK - missing :], x_BCTHW)
