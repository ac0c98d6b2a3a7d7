"""What the stages of both continuous video tokenizers share: latents to frames, on one rank or several.

T frames (of the latent where the name says latent), H W rows and columns.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import TokenizerShape, WanTokenizerShape
from cosmos_nemo.models.common.causal import LOOKS_BACK
from cosmos_nemo.models.video_tokenizer.model import PARTS, to_uint8
from cosmos_nemo.parallel.neighbours import join_on_first, pieces_of
from cosmos_nemo.stages.base import Stage


class Decodes(Protocol):
    """As far as a tokenizer of either kind is used here."""

    def decode_share(self, latent_BCTHW: Tensor, *, group: ProcessGroup) -> Tensor | None: ...


class ContinuousTokenizer(Stage):
    """A video tokenizer and the statistics of its latents, read from one folder.

    A subclass gives `most_together`, `build` and `pieces`.
    """

    name: ClassVar[str] = "tokenizer"
    most_together: ClassVar[int]
    """Latent frames that a rank decodes at once when ranks decode together: they need memory."""

    def __init__(
        self,
        *,
        shape: TokenizerShape | WanTokenizerShape,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype | None = None,
        offload: bool = False,
        prefetches: bool = False,
        parts: Collection[str] = PARTS,
    ) -> None:
        """dtype: None is bfloat16 on a GPU and float32 on the CPU; parts: "encoder", "decoder" or both."""
        super().__init__(device=device, offload=offload, prefetches=prefetches)
        self.folder, self.parts = folder, parts
        self._sizes = shape
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)

    def pieces(self, latent_BCTHW: Tensor) -> Iterator[Tensor]:
        """The decoded video [1, 3, T, H, W] about -1..1, a piece of time after the other."""
        raise NotImplementedError(f"{type(self).__name__}.pieces")

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Frames uint8 0..255 [T, H, W, 3] on the CPU of a normalised latent in a batch of one.

        Each piece of the video leaves the device as soon as it is made.
        """
        count = 1 + self._sizes.temporal_compression * (latent_BCTHW.shape[2] - 1)
        return frames_of(self.pieces(latent_BCTHW.to(self.device)), count)

    def ranks_for(self, latent_frames: int, group: ProcessGroup) -> int:
        """How many of the group's first ranks decode such a latent together; 1 where it is not worth it."""
        lengths = pieces_of(latent_frames, group, least=LOOKS_BACK)
        return sum(length > 0 for length in lengths) if max(lengths) <= self.most_together else 1

    def decode_together(self, latent_BCTHW: Tensor, group: ProcessGroup) -> Tensor | None:
        """`decode` by the `ranks_for` it, a piece each at the same time; the frames on the first rank.

        Each of these ranks, and no other, enters the stage and calls it with the same latent.
        """
        ranks = self.ranks_for(latent_BCTHW.shape[2], group)
        if ranks == 1:
            return self.decode(latent_BCTHW)
        mine_BCTHW = cast(Decodes, self.module).decode_share(latent_BCTHW.to(self.device), group=group)
        assert mine_BCTHW is not None
        lengths = pieces_of(latent_BCTHW.shape[2], group, least=LOOKS_BACK)[:ranks]
        many = self._sizes.temporal_compression
        frames = [many * length - (many - 1 if rank == 0 else 0) for rank, length in enumerate(lengths)]
        frames_THWC = join_on_first(to_uint8(mine_BCTHW), group, lengths=frames)
        return None if frames_THWC is None else frames_THWC.cpu()


def frames_of(pieces: Iterator[Tensor], count: int) -> Tensor:
    """`count` frames uint8 [T, H, W, 3] on the CPU, written where they are to stay."""
    frames_THWC, end = torch.empty(0), 0
    for piece_BCTHW in pieces:
        levels_THWC = to_uint8(piece_BCTHW)
        if end == 0:
            frames_THWC = torch.empty(count, *levels_THWC.shape[1:], dtype=torch.uint8)
        start, end = end, end + len(levels_THWC)
        frames_THWC[start:end] = levels_THWC
    assert end == count, f"{end} frames in place of {count}"
    return frames_THWC
