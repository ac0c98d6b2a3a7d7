"""Decoding a latent piece by piece over time, with the frames of the unsplit decode.

Everything in the decoder looks at one frame (norms, spatial convolutions and attention) or back in time. The
middle block, whose temporal attention looks back to the start, runs on the whole clip, which is small at the
latent's size. After it each causal convolution needs the last frames of the piece before, and nothing else:
they are its carry. Pieces are made one after the other, or at the same time on several ranks, each of which
hands its last frames on at every convolution.

Each function here is the forward pass of the diffusers module it is given, for one piece.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import LOOKS_BACK
from cosmos_nemo.models.common.causal import Carry, RanksCarry, repeat_first
from cosmos_nemo.models.common.norm_silu import group_norm_silu
from cosmos_nemo.models.common.volumes import for_convolutions, repeated
from cosmos_nemo.models.video_tokenizer.blocks import over_space, over_time, projection, resnet_block
from cosmos_nemo.models.video_tokenizer.middle import middle
from cosmos_nemo.plan import shares_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import (
        CosmosDecoder3d,
        CosmosUnpatcher3d,
        CosmosUpBlock3d,
        CosmosUpsample3d,
    )


@torch.inference_mode()
def decode_pieces(
    autoencoder: "AutoencoderKLCosmos", latent_BCTHW: Tensor, *, frames_per_piece: int
) -> Iterator[Tensor]:
    """Video [B, 3, T, H, W] of a latent that is not normalised, `frames_per_piece` latent frames at a time.

    A latent frame becomes 8 frames of the video, the first one becomes 1. Of one clip at a time channels lie
    together from end to end, which is faster on a GPU; several are decoded as well.
    """
    hidden, carry = _to_middle(autoencoder, latent_BCTHW), Carry(repeat_first)
    for piece in hidden.split(frames_per_piece, dim=2):
        yield _after_middle(autoencoder.decoder, piece, carry)
        carry.is_first = False


@torch.inference_mode()
def decode_share(
    autoencoder: "AutoencoderKLCosmos", latent_BCTHW: Tensor, *, group: ProcessGroup
) -> Tensor | None:
    """This rank's piece [B, 3, t, H, W] of the video of `decode_pieces`; every rank has the whole latent.

    The ranks' pieces follow each other. None on a rank for which nothing is left: a piece has two latent
    frames or more. The middle block runs on every rank.
    """
    lengths = shares_of(latent_BCTHW.shape[2], group.size(), least=LOOKS_BACK)
    if not lengths[group.rank()]:
        return None
    hidden = _to_middle(autoencoder, latent_BCTHW).split(lengths, dim=2)[group.rank()]
    carry = RanksCarry(repeat_first, group, num_pieces=sum(length > 0 for length in lengths))
    return _after_middle(autoencoder.decoder, hidden, carry)


def _to_middle(autoencoder: "AutoencoderKLCosmos", latent_BCTHW: Tensor) -> Tensor:
    decoder, whole = autoencoder.decoder, Carry(repeat_first)
    x = for_convolutions(autoencoder.post_quant_conv(latent_BCTHW))
    return middle(decoder.mid_block, projection(decoder.conv_in, x, whole))


def _after_middle(decoder: "CosmosDecoder3d", x: Tensor, carry: Carry) -> Tensor:
    for block in decoder.up_blocks:
        x = _up_block(block, x, carry)
    x = group_norm_silu(x, decoder.norm_out.norm)
    x = projection(decoder.conv_out, x, carry)
    return _unpatch(decoder.unpatch_embed, x.contiguous(), is_first=carry.is_first)


def _up_block(block: "CosmosUpBlock3d", x: Tensor, carry: Carry) -> Tensor:
    for resnet in block.resnets:
        x = resnet_block(resnet, x, carry)
    for upsampler in block.upsamplers or ():
        x = _upsample(upsampler, x, carry)
    return x


def _upsample(block: "CosmosUpsample3d", x: Tensor, carry: Carry) -> Tensor:
    """Twice the frames, of which the clip's first is dropped, then twice the rows and columns."""
    if block.temporal_upsample:
        x = repeated(x, frames=2)[:, :, int(carry.is_first) :]
        x = over_time(block.conv1, x, carry).add_(x)
    if block.spatial_upsample:
        x = repeated(x, sides=2)
        x = over_space(block.conv2, x).add_(x)
    return over_space(block.conv3, x)


def _unpatch(unpatcher: "CosmosUnpatcher3d", x: Tensor, *, is_first: bool) -> Tensor:
    """The inverse Haar transform; of the clip's first patch all frames but one are dropped."""
    for _ in range(unpatcher.patch_size.bit_length() - 1):
        x = _inverse_haar(x, unpatcher.wavelets[0].to(x.dtype))
    return x[:, :, unpatcher.patch_size - 1 :] if is_first else x


def _inverse_haar(x: Tensor, wavelet: Tensor) -> Tensor:
    """One level [B, 8C, T, H, W] -> [B, C, 2T, 2H, 2W]; sub-bands LLL, LLH .. HHH, the letters T, H, W.

    Sums in the order of diffusers' transposed convolutions and with their rounding, but faster.
    """
    x = x.unflatten(1, (8, -1))
    for axis in (-1, -2, -3):
        low, high = (x.unflatten(1, (-1, 2)) * wavelet).unbind(2)
        x = torch.stack((low + high, low - high), dim=x.ndim + 1 + axis).flatten(axis - 1, axis)
    return x.squeeze(1) * 8**0.5
