"""What a loop has drawn, brought to the host while the device goes on."""

from collections import deque

import torch
from torch import Tensor

from cosmos_nemo.sampling.samplers import OnStep

NOT_FINITE = -1
"""Stands for a token that was drawn from logits that are NaN or infinite."""


class NotFiniteLogits(FloatingPointError):
    """Logits that are NaN or infinite: those of the token that follows `number` drawn ones of `video`, both
    counted from 0."""

    def __init__(self, number: int, video: int) -> None:
        super().__init__(number, video)  # as they are, so that it survives pickling
        self.number, self.video = number, video

    def __str__(self) -> str:
        return f"logits are NaN or infinite after {self.number} drawn tokens of video {self.video}"


class TokenReport:
    """Copies tokens to the host in blocks, and looks at each of them when the next one has been asked for.

    So a GPU always has steps before it while the host waits for the block before those, and the host never
    runs further ahead than that. On the CPU a block is looked at right away.
    """

    def __init__(self, drawn_NB: Tensor, on_step: OnStep | None = None) -> None:
        """drawn_NB: int64, to be filled from the top while blocks are asked for."""
        self._on_gpu = drawn_NB.device.type == "cuda"
        self._drawn_NB, self._on_step = drawn_NB, on_step
        self._host_NB = torch.empty(drawn_NB.shape, dtype=torch.int64, pin_memory=self._on_gpu)
        self._asked = self._seen = 0
        self._pending: deque[tuple[int, torch.cuda.Event | None]] = deque()

    def block(self, end: int) -> None:
        """Asks for the rows before `end` that were not asked for yet. NotFiniteLogits as of `finish`."""
        rows = slice(self._asked, end)
        self._host_NB[rows].copy_(self._drawn_NB[rows], non_blocking=True)
        event = None
        if self._on_gpu:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._drawn_NB.device))
        self._pending.append((end, event))
        self._asked = end
        while len(self._pending) > int(self._on_gpu):
            self._look()

    def finish(self) -> Tensor:
        """All tokens, [B, N] on the CPU. NotFiniteLogits if there is one without finite logits."""
        while self._pending:
            self._look()
        assert self._seen == len(self._drawn_NB)
        return self._host_NB.T.contiguous()

    def _look(self) -> None:
        end, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        bad = (self._host_NB[self._seen : end] == NOT_FINITE).nonzero().tolist()
        if bad:
            number, video = bad[0]
            raise NotFiniteLogits(self._seen + number, video)
        self._seen = end
        if self._on_step is not None:
            self._on_step(end, len(self._drawn_NB))
