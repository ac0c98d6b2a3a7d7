"""Wan2.1's video tokenizer: diffusers' AutoencoderKLWan and the statistics of its latents.

B batch, C channels, T frames (of the latent where the name says latent), H W rows and columns.
"""

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.models.wan_tokenizer.streaming import decode_pieces, decode_share

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

MODULES = {"encoder": ("encoder", "quant_conv"), "decoder": ("decoder", "post_quant_conv")}
PARTS = tuple(MODULES)


def build_autoencoder(
    shape: WanTokenizerShape,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    parts: Collection[str] = PARTS,
) -> "AutoencoderKLWan":
    """The network with uninitialised weights on `device` ("meta" too), without the parts not asked for.

    It has attention in the middle blocks only, as the released one has (spec/predict2-video2world.md, 3).
    """
    # Its constants are made when it is imported: under a meta device they would have no values.
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    assert shape.spatial_compression == 2 ** len(shape.halves_time), shape
    assert shape.temporal_compression == 2 ** sum(shape.halves_time), shape
    with torch.device("meta"):
        autoencoder = AutoencoderKLWan(
            base_dim=shape.channels,
            z_dim=shape.latent_channels,
            dim_mult=list(shape.channel_multipliers),
            num_res_blocks=shape.num_res_blocks,
            attn_scales=[],
            temperal_downsample=list(shape.halves_time),
            scale_factor_temporal=shape.temporal_compression,
            scale_factor_spatial=shape.spatial_compression,
        )
    for part in set(PARTS) - set(parts):
        for module in MODULES[part]:
            setattr(autoencoder, module, None)
    # diffusers' own `to` warns about an empty list of modules to keep in float32.
    nn.Module.to(autoencoder, dtype).requires_grad_(False).eval()
    if torch.device(device).type != "meta":
        autoencoder.to_empty(device=device)
    return autoencoder


class WanTokenizer(nn.Module):
    """Video to normalised latent and back (spec/predict2-video2world.md, 3).

    A video is float -1..1 [B, 3, 1 + 4k, H, W] with H and W multiples of 8; its latent is float
    [B, 16, 1 + k, H / 8, W / 8], normalised per channel. The statistics stay float32 whatever the network
    computes in.

    Both ways go through time in pieces. What the causal convolutions keep of a piece for the next belongs to
    the call and not to the module: a call that is abandoned leaves nothing behind.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, autoencoder: "AutoencoderKLWan", *, mean_C: Tensor, std_C: Tensor) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("mean_C", mean_C.float())
        self.register_buffer("std_C", std_C.float())

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the network's weights, in which it computes."""
        return self.autoencoder.dtype

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, *, frames_per_window: int | None = None) -> Tensor:
        """The normalised latent, float32, of a video -1..1: the mean of the posterior, not a sample.

        Frames that follow change nothing in a latent, so that the beginning of a video can be encoded alone.
        The latent is the same for every `frames_per_window`; None takes the frames of one latent frame, which
        needs the least memory. ValueError for sizes that do not fit.
        """
        if self.autoencoder.encoder is None:
            raise ValueError("this tokenizer was built without its encoder: build it with parts=('encoder',)")
        compression = self.autoencoder.config.scale_factor_temporal
        window = compression if frames_per_window is None else frames_per_window
        if window < 1 or window % compression:
            raise ValueError(
                f"frames_per_window is {window}: a latent frame holds {compression} frames, pass a multiple"
            )
        self._check_video(video_BCTHW)
        num_frames, carry = video_BCTHW.shape[2], _no_carry(self.autoencoder.encoder)
        pieces = [
            self.autoencoder.encoder(
                video_BCTHW[:, :, start:end].to(self.dtype), feat_cache=carry, feat_idx=[0]
            )
            for start, end in _pieces(num_frames, window)
        ]
        moments = self.autoencoder.quant_conv(torch.cat(pieces, dim=2))
        mu_BCTHW, _ = moments.float().chunk(2, dim=1)
        return (mu_BCTHW - _over_latent(self.mean_C)) / _over_latent(self.std_C)

    def decode(self, latent_BCTHW: Tensor, *, frames_per_piece: int = 1) -> Tensor:
        """The video of a normalised latent, about -1..1 and not clamped, in the network's number format.

        The frames are the same for every `frames_per_piece`, but for rounding. ValueError for a latent that
        does not fit.
        """
        return torch.cat(list(self.decode_pieces(latent_BCTHW, frames_per_piece=frames_per_piece)), dim=2)

    def decode_pieces(self, latent_BCTHW: Tensor, *, frames_per_piece: int = 1) -> Iterator[Tensor]:
        """`decode` piece by piece over time; of its 4 frames per latent frame the first piece lacks 3."""
        if frames_per_piece < 1:
            raise ValueError(f"frames_per_piece is {frames_per_piece}: a piece has at least one latent frame")
        raw_BCTHW = self._for_decoder(latent_BCTHW)
        return decode_pieces(self.autoencoder, raw_BCTHW, frames_per_piece=frames_per_piece)

    def decode_share(self, latent_BCTHW: Tensor, *, group: ProcessGroup) -> Tensor | None:
        """This rank's piece of `decode`, whose ranks follow each other; None where nothing is left for it.

        Every rank calls it with the same latent, which has two latent frames or more for each rank that takes
        part.
        """
        return decode_share(self.autoencoder, self._for_decoder(latent_BCTHW), group=group)

    def _for_decoder(self, latent_BCTHW: Tensor) -> Tensor:
        """Not normalised any more, in the network's number format."""
        if self.autoencoder.decoder is None:
            raise ValueError("this tokenizer was built without its decoder: build it with parts=('decoder',)")
        channels = self.mean_C.numel()
        if latent_BCTHW.ndim != 5 or latent_BCTHW.shape[1] != channels or not latent_BCTHW.shape[2]:
            raise ValueError(
                f"a latent of shape {tuple(latent_BCTHW.shape)} is no [B, {channels}, T, H, W]: "
                "it belongs to another tokenizer"
            )
        return (latent_BCTHW.float() * _over_latent(self.std_C) + _over_latent(self.mean_C)).to(self.dtype)

    def _check_video(self, video_BCTHW: Tensor) -> None:
        config = self.autoencoder.config
        time, space = config.scale_factor_temporal, config.scale_factor_spatial
        if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != config.in_channels:
            raise ValueError(
                f"a video of shape {tuple(video_BCTHW.shape)} is no [B, {config.in_channels}, T, H, W]"
            )
        num_frames, height, width = video_BCTHW.shape[2:]
        if num_frames < 1 or (num_frames - 1) % time:
            raise ValueError(f"the video has {num_frames} frames: the tokenizer takes {time}k+1")
        if height % space or width % space:
            raise ValueError(f"{width}x{height} pixels: the tokenizer takes multiples of {space}")


def _pieces(num_frames: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the first frame alone and of the pieces of at most `size` frames after it."""
    return pairwise([0, *range(1, num_frames, size), num_frames])


def _no_carry(part: nn.Module) -> list[Any]:
    """What diffusers calls a feature cache, empty: room for at least one entry per causal convolution."""
    return [None] * sum(isinstance(module, nn.Conv3d) for module in part.modules())


def _over_latent(values_C: Tensor) -> Tensor:
    return values_C[:, None, None, None]
