"""The discrete video tokenizer DV8x16x16: a video's token ids, and the video of token ids.

Encoder and decoder are those of the continuous tokenizer, diffusers' AutoencoderKLCosmos, built for another
compression: its levels halve, and double back in the mirrored order, the axes that the released ones do
(`legacy_mode` False; spec/predict1-autoregressive.md, 3). Only the convolutions beside the codes differ.

B batch, C channels, T frames (latent where the name says ids), H W rows and columns, h w those of the latent.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import FRAMES_PER_PIECE, DiscreteTokenizerShape
from cosmos_nemo.models.discrete_tokenizer.fsq import codes_of, ids_of, nearest_codes
from cosmos_nemo.models.video_tokenizer.encoding import encode
from cosmos_nemo.models.video_tokenizer.model import MODULES, PARTS
from cosmos_nemo.models.video_tokenizer.model import build_autoencoder as build_continuous
from cosmos_nemo.models.video_tokenizer.streaming import decode_pieces

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos

__all__ = ["MODULES", "PARTS", "DiscreteTokenizer", "build_autoencoder"]


def build_autoencoder(
    shape: DiscreteTokenizerShape,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    parts: Collection[str] = PARTS,
) -> "AutoencoderKLCosmos":
    """The network with uninitialised weights on `device` ("meta" too), without the parts not asked for."""
    autoencoder = build_continuous(shape.autoencoder, device=device, dtype=dtype, parts=parts)
    latent, code = shape.latent_channels, len(shape.levels)
    if "encoder" in parts:
        autoencoder.quant_conv = _pointwise(latent, code, device=device, dtype=dtype)
    if "decoder" in parts:
        autoencoder.post_quant_conv = _pointwise(code, latent, device=device, dtype=dtype)
    return autoencoder


def _pointwise(inputs: int, outputs: int, *, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosCausalConv3d

    with torch.device("meta"):
        conv = CosmosCausalConv3d(inputs, outputs, kernel_size=1, padding=0)
    conv = conv.to(dtype).requires_grad_(False).eval()
    return conv if torch.device(device).type == "meta" else conv.to_empty(device=device)


class DiscreteTokenizer(nn.Module):
    """Video to token ids and back.

    A video is float -1..1 [B, 3, 1 + 8k, H, W] with H and W multiples of 16; its ids are int64
    [B, 1 + k, H / 16, W / 16] from 0 up to the product of `levels`. In raster order of T, h, w they are the
    sequence that a transformer of video tokens goes on.

    The network is causal: the ids of the first 1 + k latent frames are those of the first 1 + 8k frames
    alone, whatever follows. Encode only frames that matter, rather than a clip that was padded.
    """

    def __init__(self, autoencoder: "AutoencoderKLCosmos", *, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.levels = levels

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the network's weights, in which it computes."""
        return self.autoencoder.dtype

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """int64 ids [B, T, h, w] of a video -1..1. ValueError for sizes that do not fit.

        In bfloat16, in which the released one runs, ids near the boundary of two codes may differ from one
        kind of device, or number of frames, to another; see fsq.py.
        """
        return ids_of(nearest_codes(self.encode_unrounded(video_BCTHW), self.levels), self.levels)

    @torch.no_grad()
    def encode_unrounded(self, video_BCTHW: Tensor) -> Tensor:
        """What is rounded to codes: float32 [B, len(levels), T, h, w]."""
        if self.autoencoder.encoder is None:
            raise ValueError("this tokenizer was built without its encoder: build it with parts=('encoder',)")
        self._check_video(video_BCTHW)
        return encode(self.autoencoder, video_BCTHW).float()

    def decode(self, ids_BThw: Tensor, *, frames_per_piece: int = FRAMES_PER_PIECE) -> Tensor:
        """The video of ids, about -1..1 and not clamped, in the network's number format.

        The frames are the same for every `frames_per_piece`, which counts latent frames. ValueError for ids
        of another shape or out of range.
        """
        return torch.cat(list(self.decode_pieces(ids_BThw, frames_per_piece=frames_per_piece)), dim=2)

    def decode_pieces(
        self, ids_BThw: Tensor, *, frames_per_piece: int = FRAMES_PER_PIECE
    ) -> Iterator[Tensor]:
        """`decode` piece by piece over time; of its 8 frames per latent frame the first piece lacks 7."""
        if self.autoencoder.decoder is None:
            raise ValueError("this tokenizer was built without its decoder: build it with parts=('decoder',)")
        if frames_per_piece < 1:
            raise ValueError(f"frames_per_piece is {frames_per_piece}: a piece has at least one latent frame")
        if ids_BThw.ndim != 4 or 0 in ids_BThw.shape:
            raise ValueError(
                f"token ids of shape {tuple(ids_BThw.shape)} are no [B, T, H, W]: one for each latent frame, "
                "row and column"
            )
        codes_BCThw = codes_of(ids_BThw, self.levels).to(self.dtype)
        return decode_pieces(self.autoencoder, codes_BCThw, frames_per_piece=frames_per_piece)

    def _check_video(self, video_BCTHW: Tensor) -> None:
        config = self.autoencoder.config
        time, space = config.temporal_compression_ratio, config.spatial_compression_ratio
        if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != config.in_channels:
            raise ValueError(
                f"a video of shape {tuple(video_BCTHW.shape)} is no [B, {config.in_channels}, T, H, W]"
            )
        num_frames, height, width = video_BCTHW.shape[2:]
        if num_frames % time != 1:
            raise ValueError(f"the video has {num_frames} frames: the tokenizer takes {time}k+1")
        if height % space or width % space or not height or not width:
            raise ValueError(f"{width}x{height} pixels: the tokenizer takes multiples of {space}")
