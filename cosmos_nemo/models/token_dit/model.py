"""The diffusion decoder: from a video's discrete tokens to its continuous latent.

spec/predict1-autoregressive.md, 5.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.models.cosmos1_dit.model import SingleLevelDiT


class TokenDiT(SingleLevelDiT):
    """Cosmos 1.0's without position tables; an embedding of each token is a part of its latent cells."""

    def __init__(self, shape: DiTShape, **parts: Any) -> None:
        """parts: as of DiT."""
        super().__init__(shape, **parts)
        self.token_embedder = nn.Embedding(shape.token_vocab, shape.token_dim, dtype=self.config.params_dtype)

    def embed_ids(self, ids_BTHW: Tensor, latent_HW: tuple[int, int]) -> Tensor:
        """Once per video and guidance branch: `told` of `forward`, [B, C, T, H, W] for that latent.

        Ids [B, T, rows, columns] of 0 to token_vocab - 1, a row and a column for some of the latent's.
        Between the centres of tokens the channels are interpolated, beyond the outer ones they stay the same.
        ValueError for an id that there is not.
        """
        self._check(ids_BTHW)
        embedded_BTHWC = self.token_embedder(ids_BTHW.to(self.device, torch.long))
        frames = rearrange(embedded_BTHWC, "b t h w c -> (b t) c h w")
        # In float32, and rounded once, as the released script's resize does it.
        frames = F.interpolate(frames.float(), size=latent_HW, mode="bilinear", align_corners=False)
        return rearrange(frames.to(self.dtype), "(b t) c h w -> b c t h w", b=len(ids_BTHW))

    def _check(self, ids_BTHW: Tensor) -> None:
        least, most = (int(bound) for bound in torch.aminmax(ids_BTHW))
        if least < 0 or most >= self.shape.token_vocab:
            raise ValueError(
                f"Token ids from {least} to {most} are not all of this decoder's, which go from 0 to "
                f"{self.shape.token_vocab - 1}: they are another tokenizer's."
            )
