"""The continuous video tokenizer CV8x8x8: diffusers' AutoencoderKLCosmos and the statistics of its latents.

B batch, C channels, T frames (of the latent where the name says latent), H W rows and columns.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import FRAMES_PER_PIECE, TokenizerShape
from cosmos_nemo.models.video_tokenizer.encoding import encode
from cosmos_nemo.models.video_tokenizer.streaming import decode_pieces, decode_share

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos

MODULES = {"encoder": ("encoder", "quant_conv"), "decoder": ("decoder", "post_quant_conv")}
PARTS = tuple(MODULES)

# 121 frames of 704x1280 then peak at 6 GiB on an H200.


def build_autoencoder(
    shape: TokenizerShape,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    parts: Collection[str] = PARTS,
) -> "AutoencoderKLCosmos":
    """The network with uninitialised weights on `device` ("meta" too), without the parts not asked for.

    It has attention in the middle blocks only, as the released ones have (spec/predict1-diffusion.md, 6.1).
    """
    # The module keeps its wavelets as a global: imported under a meta device they would have no values.
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import AutoencoderKLCosmos

    channels = [shape.channels * multiplier for multiplier in shape.channel_multipliers]
    with torch.device("meta"):
        autoencoder = AutoencoderKLCosmos(
            latent_channels=shape.latent_channels,
            encoder_block_out_channels=(shape.channels, *channels),
            decode_block_out_channels=(*channels, channels[-1]),
            attention_resolutions=(),
            num_layers=shape.num_res_blocks,
            patch_size=shape.patch_size,
            spatial_compression_ratio=shape.spatial_compression,
            temporal_compression_ratio=shape.temporal_compression,
        )
    for part in set(PARTS) - set(parts):
        for module in MODULES[part]:
            setattr(autoencoder, module, None)
    # diffusers' own `to` warns about an empty list of modules to keep in float32.
    nn.Module.to(autoencoder, dtype).requires_grad_(False).eval()
    if torch.device(device).type != "meta":
        autoencoder.to_empty(device=device)
        _refill_wavelets(autoencoder, device)
    return autoencoder


def _refill_wavelets(autoencoder: nn.Module, device: torch.device | str) -> None:
    """Gives the Haar patchers their constants, which no checkpoint holds and the meta device lost."""
    for patcher in autoencoder.modules():
        if not hasattr(patcher, "wavelets"):
            continue
        fresh = type(patcher)(patcher.patch_size, patcher.patch_method)
        for name, values in fresh.named_buffers():
            patcher.register_buffer(name, values.to(device), persistent=False)


class VideoTokenizer(nn.Module):
    """Video to normalised latent and back (spec/predict1-diffusion.md, 6).

    A video is float -1..1 [B, 3, 1 + 8k, H, W] with H and W multiples of 8; its latent is float
    [B, 16, 1 + k, H / 8, W / 8], normalised per channel and latent frame. Multiplying by sigma_data is the
    sampler's affair. The statistics stay float32 whatever the network computes in.

    `mean_CT`, `std_CT` are mean_std.pt, which holds as many latent frames as a clip may have. `image_mean_C`,
    `image_std_C` are image_mean_std.pt and serve clips of one frame; without them such a clip takes the
    statistics of a video's first frame, which NVIDIA's first release of the tokenizer did not do: it failed.
    """

    mean_CT: Tensor
    std_CT: Tensor
    image_mean_C: Tensor | None
    image_std_C: Tensor | None

    def __init__(
        self,
        autoencoder: "AutoencoderKLCosmos",
        *,
        mean_CT: Tensor,
        std_CT: Tensor,
        image_mean_C: Tensor | None = None,
        image_std_C: Tensor | None = None,
    ) -> None:
        super().__init__()
        assert (image_mean_C is None) == (image_std_C is None), "an image's mean and std come together"
        self.autoencoder = autoencoder
        self.register_buffer("mean_CT", mean_CT.float())
        self.register_buffer("std_CT", std_CT.float())
        self.register_buffer("image_mean_C", None if image_mean_C is None else image_mean_C.float())
        self.register_buffer("image_std_C", None if image_std_C is None else image_std_C.float())

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the network's weights, in which it computes."""
        return self.autoencoder.dtype

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor, *, as_image: bool | None = None) -> Tensor:
        """The normalised latent, float32, of a video -1..1. ValueError for sizes that do not fit.

        as_image: which statistics a clip of one frame gets, an image's or those of a video's first frame;
        None takes an image's. Frames that follow change nothing in a latent, so that the beginning of a
        video can be encoded alone.
        """
        if self.autoencoder.encoder is None:
            raise ValueError("this tokenizer was built without its encoder: build it with parts=('encoder',)")
        self._check_video(video_BCTHW)
        latent = encode(self.autoencoder, video_BCTHW)
        mean_CT11, std_CT11 = self._statistics(latent.shape[2], as_image=as_image)
        return (latent.float() - mean_CT11) / std_CT11

    def decode(self, latent_BCTHW: Tensor, *, frames_per_piece: int = FRAMES_PER_PIECE) -> Tensor:
        """The video of a normalised latent, about -1..1 and not clamped, in the network's number format.

        The frames are the same for every `frames_per_piece`, which counts latent frames, but for rounding on
        a GPU. ValueError for a latent that does not fit.
        """
        return torch.cat(list(self.decode_pieces(latent_BCTHW, frames_per_piece=frames_per_piece)), dim=2)

    def decode_pieces(
        self, latent_BCTHW: Tensor, *, frames_per_piece: int = FRAMES_PER_PIECE
    ) -> Iterator[Tensor]:
        """`decode` piece by piece over time; of its 8 frames per latent frame the first piece lacks 7."""
        if frames_per_piece < 1:
            raise ValueError(f"frames_per_piece is {frames_per_piece}: a piece has at least one latent frame")
        latent_BCTHW = self._for_decoder(latent_BCTHW)
        return decode_pieces(self.autoencoder, latent_BCTHW, frames_per_piece=frames_per_piece)

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
        self._check_latent(latent_BCTHW)
        mean_CT11, std_CT11 = self._statistics(latent_BCTHW.shape[2])
        return (latent_BCTHW.float() * std_CT11 + mean_CT11).to(self.dtype)

    def _statistics(self, num_frames: int, *, as_image: bool | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C, T, 1, 1] of a latent with `num_frames` frames."""
        is_image = num_frames == 1 and as_image is not False
        if is_image and self.image_mean_C is not None and self.image_std_C is not None:
            return self.image_mean_C[:, None, None, None], self.image_std_C[:, None, None, None]
        return self.mean_CT[:, :num_frames, None, None], self.std_CT[:, :num_frames, None, None]

    def _check_latent(self, latent_BCTHW: Tensor) -> None:
        channels, most = self.mean_CT.shape
        if latent_BCTHW.ndim != 5 or latent_BCTHW.shape[1] != channels or not latent_BCTHW.shape[2]:
            raise ValueError(
                f"a latent of shape {tuple(latent_BCTHW.shape)} is no [B, {channels}, T, H, W]: "
                "it belongs to another tokenizer"
            )
        if latent_BCTHW.shape[2] > most:
            raise ValueError(
                f"the latent has {latent_BCTHW.shape[2]} frames, but the statistics in mean_std.pt end at "
                f"{most}: decode clips of at most {most} latent frames"
            )

    def _check_video(self, video_BCTHW: Tensor) -> None:
        config = self.autoencoder.config
        time, space = config.temporal_compression_ratio, config.spatial_compression_ratio
        if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != config.in_channels:
            raise ValueError(
                f"a video of shape {tuple(video_BCTHW.shape)} is no [B, {config.in_channels}, T, H, W]"
            )
        num_frames, height, width = video_BCTHW.shape[2:]
        longest = 1 + time * (self.mean_CT.shape[1] - 1)
        if num_frames % time != 1 or num_frames > longest:
            raise ValueError(
                f"the video has {num_frames} frames: the tokenizer takes {time}k+1, at most {longest}"
            )
        if height % space or width % space:
            raise ValueError(f"{width}x{height} pixels: the tokenizer takes multiples of {space}")


def to_uint8(video_BCTHW: Tensor) -> Tensor:
    """Frames uint8 0..255 [T, H, W, 3] of one video about -1..1, truncated as upstream does (spec, 6.3)."""
    levels = (video_BCTHW.float() + 1).clamp_(0, 2).div_(2).mul_(255)
    return rearrange(levels.to(torch.uint8), "1 c t h w -> t h w c")
