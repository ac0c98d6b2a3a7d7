"""What the stages of both continuous video tokenizers share: latents to frames, on one rank or several.

T frames (of the latent where the name says latent), H W rows and columns.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import TokenizerShape, WanTokenizerShape
from cosmos_nemo.memory import decode_shares, share_memory
from cosmos_nemo.models.video_tokenizer.model import PARTS, to_uint8
from cosmos_nemo.parallel.neighbours import join_on_first
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.parked import free_bytes


class ContinuousTokenizer(Stage):
    """A video tokenizer and the statistics of its latents, read from one folder.

    A subclass gives `build`, `pieces` and `share`.
    """

    name: ClassVar[str] = "tokenizer"

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
        self.shape, self.folder, self.parts = shape, folder, parts
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)

    def pieces(self, latent_BCTHW: Tensor) -> Iterator[Tensor]:
        """The video [1, 3, T, H, W] about -1..1 of a latent on the device, piece after piece of time."""
        raise NotImplementedError(f"{type(self).__name__}.pieces")

    def share(self, latent_BCTHW: Tensor, group: ProcessGroup) -> Tensor | None:
        """This rank's piece of it, which the ranks of the group make at the same time."""
        raise NotImplementedError(f"{type(self).__name__}.share")

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Frames uint8 0..255 [T, H, W, 3] on the CPU of a normalised latent in a batch of one.

        Each piece of the video leaves the device as soon as it is made.
        """
        count = 1 + self.shape.temporal_compression * (latent_BCTHW.shape[2] - 1)
        return frames_of(self.pieces(latent_BCTHW.to(self.device)), count)

    def ranks_for(self, latent_BCTHW: Tensor, group: ProcessGroup) -> int:
        """How many of the group's first ranks can decode such a latent together; see memory.decode_shares."""
        return len(self._shares(latent_BCTHW, group))

    def has_room(self, latent_BCTHW: Tensor, group: ProcessGroup) -> bool:
        """Whether this rank's GPU has the memory for its share, if it has one of several. A CPU has."""
        shares = self._shares(latent_BCTHW, group)
        if self.device.type != "cuda" or not 1 < len(shares) > group.rank():
            return True
        frames, rows, columns = latent_BCTHW.shape[2:]
        needed = share_memory(self.shape, (frames, rows, columns), shares[group.rank()])
        return free_bytes(self.device) >= needed.weights + needed.work

    def decode_together(self, latent_BCTHW: Tensor, group: ProcessGroup) -> Tensor | None:
        """`decode` by the `ranks_for` it, a piece each at the same time; the frames on the first rank.

        Each of these ranks, and no other, enters the stage and calls it with the same latent. Before the
        first time every rank of the group took part in rank_zero.on_all, of the answers to has_room.
        """
        shares = self._shares(latent_BCTHW, group)
        if len(shares) == 1:
            return self.decode(latent_BCTHW)
        mine_BCTHW = self.share(latent_BCTHW.to(self.device), group)
        assert mine_BCTHW is not None
        many = self.shape.temporal_compression
        frames = [many * share - (many - 1 if rank == 0 else 0) for rank, share in enumerate(shares)]
        mine_THWC = to_uint8(mine_BCTHW)
        host_THWC = _room_for(sum(frames), mine_THWC) if group.rank() == 0 else None
        frames_THWC = join_on_first(mine_THWC, group, lengths=frames)
        return None if host_THWC is None or frames_THWC is None else host_THWC.copy_(frames_THWC)

    def _shares(self, latent_BCTHW: Tensor, group: ProcessGroup) -> list[int]:
        frames, rows, columns = latent_BCTHW.shape[2:]
        return decode_shares(self.shape, (frames, rows, columns), group.size())


def frames_of(pieces: Iterator[Tensor], count: int) -> Tensor:
    """`count` frames uint8 [T, H, W, 3] on the CPU, written where they are to stay."""
    frames_THWC, end = torch.empty(0), 0
    for piece_BCTHW in pieces:
        levels_THWC = to_uint8(piece_BCTHW)
        if end == 0:
            frames_THWC = _room_for(count, levels_THWC)
        start, end = end, end + len(levels_THWC)
        frames_THWC[start:end] = levels_THWC
    assert end == count, f"{end} frames in place of {count}"
    return frames_THWC


def _room_for(count: int, some_THWC: Tensor) -> Tensor:
    """Host memory for `count` such frames, each page of it touched while a GPU is still busy with them.

    Else the copy would wait for the pages: a third of a GiB for 121 frames of 1280 x 704.
    """
    room_THWC = torch.empty(count, *some_THWC.shape[1:], dtype=some_THWC.dtype)
    return room_THWC.zero_() if some_THWC.is_cuda else room_THWC
