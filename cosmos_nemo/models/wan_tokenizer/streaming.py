"""Decoding a latent of Wan2.1's tokenizer piece by piece over time, with the frames of the unsplit decode.

Everything in the decoder looks at one frame (norms, attention, spatial convolutions) or back in time by the
two frames that a causal convolution sees before a piece: they are its carry. Pieces are made one after the
other, or at the same time on several ranks, each of which hands its last frames on at every convolution.

Each function here is the forward pass of the diffusers module it is given, for one piece.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.catalog import LOOKS_BACK
from cosmos_nemo.models.common.causal import Carry, RanksCarry, zeros_before
from cosmos_nemo.models.common.norm_silu import rms_norm_silu
from cosmos_nemo.models.common.volumes import (
    convolved,
    for_convolutions,
    in_memory_as,
    interleaved,
    joined,
    repeated,
)
from cosmos_nemo.plan import shares_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.autoencoder_kl_wan import (
        WanAttentionBlock,
        WanCausalConv3d,
        WanDecoder3d,
        WanMidBlock,
        WanResample,
        WanResidualBlock,
        WanRMS_norm,
    )


@torch.inference_mode()
def decode_pieces(
    autoencoder: "AutoencoderKLWan", raw_BCTHW: Tensor, *, frames_per_piece: int
) -> Iterator[Tensor]:
    """Video [B, 3, T, H, W] of a latent that is not normalised, `frames_per_piece` latent frames at a time.

    A latent frame of the released tokenizer becomes 4 frames of the video, the first one becomes 1.
    """
    hidden, carry = _hidden(autoencoder, raw_BCTHW), Carry(zeros_before)
    for piece in hidden.split(frames_per_piece, dim=2):
        yield _decode_piece(autoencoder.decoder, piece, carry)
        carry.is_first = False


@torch.inference_mode()
def decode_share(autoencoder: "AutoencoderKLWan", raw_BCTHW: Tensor, *, group: ProcessGroup) -> Tensor | None:
    """This rank's piece [B, 3, t, H, W] of the video of `decode_pieces`; every rank has the whole latent.

    The ranks' pieces follow each other. None on a rank for which nothing is left: a piece has two latent
    frames or more.
    """
    lengths = shares_of(raw_BCTHW.shape[2], group.size(), least=LOOKS_BACK)
    if not lengths[group.rank()]:
        return None
    hidden = _hidden(autoencoder, raw_BCTHW.split(lengths, dim=2)[group.rank()])
    num_pieces = sum(length > 0 for length in lengths)
    carry = RanksCarry(zeros_before, group, num_pieces=num_pieces)
    return _decode_piece(autoencoder.decoder, hidden, carry)


def _hidden(autoencoder: "AutoencoderKLWan", raw_BCTHW: Tensor) -> Tensor:
    config = autoencoder.config
    assert not config.is_residual and config.patch_size is None, "a tokenizer of Wan2.2, not of Wan2.1"
    return for_convolutions(convolved(autoencoder.post_quant_conv, raw_BCTHW))


def _decode_piece(decoder: "WanDecoder3d", x: Tensor, carry: Carry) -> Tensor:
    x = _middle(decoder.mid_block, _causal_conv(decoder.conv_in, x, carry), carry)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x, carry)
        for upsampler in block.upsamplers or ():
            x = _upsample(upsampler, x, carry)
    return _causal_conv(decoder.conv_out, _norm_silu(decoder.norm_out, x), carry)


def _middle(block: "WanMidBlock", x: Tensor, carry: Carry) -> Tensor:
    x = _resnet(block.resnets[0], x, carry)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _resnet(resnet, _attention(attention, x), carry)
    return x


def _resnet(block: "WanResidualBlock", x: Tensor, carry: Carry) -> Tensor:
    hidden = _causal_conv(block.conv1, _norm_silu(block.norm1, x), carry)
    hidden = _causal_conv(block.conv2, _norm_silu(block.norm2, hidden), carry)
    widens = block.in_dim != block.out_dim
    return hidden.add_(convolved(block.conv_shortcut, x) if widens else x)


def _norm_silu(norm: "WanRMS_norm", x: Tensor) -> Tensor:
    return rms_norm_silu(x, norm.gamma.flatten())


def _attention(block: "WanAttentionBlock", x: Tensor) -> Tensor:
    """Attention of one head within each frame, and x."""
    _, _, frames, height, width = x.shape
    normed = rms_norm_silu(x, block.norm.gamma.flatten(), silu=False)
    qkv = rearrange(convolved(block.to_qkv, normed), "b c t h w -> (b t) 1 (h w) c")
    q, k, v = qkv.chunk(3, dim=-1)
    mixed = F.scaled_dot_product_attention(q, k, v)
    mixed = rearrange(mixed, "(b t) 1 (h w) c -> b c t h w", t=frames, h=height, w=width)
    return convolved(block.proj, in_memory_as(x, mixed)).add_(x)


def _upsample(block: "WanResample", x: Tensor, carry: Carry) -> Tensor:
    """Twice the frames but for the clip's first, then twice the rows and columns, and a convolution.

    Each value four times: those of diffusers' nearest upsampling, which goes through float32.
    """
    if block.mode == "upsample3d":
        x = _double_frames(block.time_conv, x, carry)
    _, conv = block.resample
    return convolved(conv, repeated(x, sides=2))


def _double_frames(conv: "WanCausalConv3d", x: Tensor, carry: Carry) -> Tensor:
    """The convolution makes two frames of each. The clip's first frame stays one and is not seen by it."""
    if not carry.is_first:
        return interleaved(_causal_conv(conv, x, carry))
    first, rest = x[:, :, :1], x[:, :, 1:]
    if not rest.shape[2]:
        carry.before(conv, rest)
        return first
    return joined(first, interleaved(_causal_conv(conv, rest, carry)))


def _causal_conv(conv: "WanCausalConv3d", x: Tensor, carry: Carry) -> Tensor:
    """A convolution over time that sees the frames before the piece; (3, 3, 3) or (3, 1, 1)."""
    return convolved(conv, joined(carry.before(conv, x), x))
