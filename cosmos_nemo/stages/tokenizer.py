"""The video tokenizer as a stage: latents to frames and back."""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.models.video_tokenizer.model import (
    MODULES,
    PARTS,
    VideoTokenizer,
    build_autoencoder,
    to_uint8,
)
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.tokenizer_folder import open_part, read_statistics


class Tokenizer(Stage):
    """A video tokenizer and the statistics of its latents, read from one folder."""

    name: ClassVar[str] = "tokenizer"

    def __init__(
        self,
        *,
        shape: TokenizerShape,
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

    def check(self) -> None:
        """CheckpointError unless the folder holds the parts and the statistics of such a tokenizer."""
        for part in self.parts:
            open_part(self.folder, self.shape, part=part)
        read_statistics(self.folder, self.shape)

    def build(self) -> VideoTokenizer:
        statistics = read_statistics(self.folder, self.shape)
        files = {part: open_part(self.folder, self.shape, part=part) for part in self.parts}
        autoencoder = build_autoencoder(self.shape, device=self.device, dtype=self.dtype, parts=self.parts)
        for part, (checkpoint, rules) in files.items():
            modules = nn.ModuleDict({name: autoencoder.get_submodule(name) for name in MODULES[part]})
            load_into(modules, checkpoint=checkpoint, rules=rules)
        return VideoTokenizer(autoencoder, **statistics).to(self.device)

    def encode(self, video_BCTHW: Tensor, *, as_image: bool | None = None) -> Tensor:
        """The normalised latent, float32 on the device, of a video -1..1; see VideoTokenizer.encode."""
        return self._tokenizer.encode(video_BCTHW.to(self.device), as_image=as_image)

    def decode(self, latent_BCTHW: Tensor) -> Tensor:
        """Frames uint8 0..255 [T, H, W, 3] on the CPU of a normalised latent in a batch of one.

        Each piece of the video leaves the device as soon as it is made.
        """
        pieces_BCTHW = self._tokenizer.decode_pieces(latent_BCTHW.to(self.device))
        return torch.cat([to_uint8(piece_BCTHW).cpu() for piece_BCTHW in pieces_BCTHW])

    @property
    def _tokenizer(self) -> VideoTokenizer:
        assert isinstance(self.module, VideoTokenizer), "enter the stage first"
        return self.module
