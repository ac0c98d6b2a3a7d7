"""Decoding a latent of Wan2.1's tokenizer piece by piece over time, with the frames of the unsplit decode.

Everything in the decoder looks at one frame (norms, attention, spatial convolutions) or back in time by the
two frames that a causal convolution sees before a piece: they are its carry. Pieces are made one after the
other, or at the same time on several ranks, each of which hands its last frames on at every convolution.

Each function here is the forward pass of the diffusers module it is given, for one piece. A tensor whose
channels lie together (channels last) stays so.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from cosmos_nemo.models.common.causal import LOOKS_BACK, Carry, RanksCarry, channels_lie_together, nothing
from cosmos_nemo.parallel.neighbours import pieces_of

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


@torch.no_grad()
def decode_pieces(
    autoencoder: "AutoencoderKLWan", raw_BCTHW: Tensor, *, frames_per_piece: int
) -> Iterator[Tensor]:
    """Video [B, 3, T, H, W] of a latent that is not normalised, `frames_per_piece` latent frames at a time.

    A latent frame of the released tokenizer becomes 4 frames of the video, the first one becomes 1.
    """
    hidden, carry = _hidden(autoencoder, raw_BCTHW), Carry(nothing)
    for piece in hidden.split(frames_per_piece, dim=2):
        yield _decode_piece(autoencoder.decoder, piece, carry)
        carry.is_first = False


@torch.no_grad()
def decode_share(autoencoder: "AutoencoderKLWan", raw_BCTHW: Tensor, *, group: ProcessGroup) -> Tensor | None:
    """This rank's piece [B, 3, t, H, W] of the video of `decode_pieces`; every rank has the whole latent.

    The ranks' pieces follow each other. None on a rank for which nothing is left: a piece has two latent
    frames or more.
    """
    lengths = pieces_of(raw_BCTHW.shape[2], group, least=LOOKS_BACK)
    if not lengths[group.rank()]:
        return None
    hidden = _hidden(autoencoder, raw_BCTHW.split(lengths, dim=2)[group.rank()])
    num_pieces = sum(length > 0 for length in lengths)
    carry = RanksCarry(nothing, group, num_pieces=num_pieces, channels_last=hidden.is_cuda)
    return _decode_piece(autoencoder.decoder, hidden, carry)


def _hidden(autoencoder: "AutoencoderKLWan", raw_BCTHW: Tensor) -> Tensor:
    config = autoencoder.config
    assert not config.is_residual and config.patch_size is None, "a tokenizer of Wan2.2, not of Wan2.1"
    hidden = _pointwise_conv(autoencoder.post_quant_conv, raw_BCTHW)
    return hidden.contiguous(memory_format=torch.channels_last_3d) if hidden.is_cuda else hidden


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
    return hidden.add_(_pointwise_conv(block.conv_shortcut, x) if widens else x)


def _norm_silu(norm: "WanRMS_norm", x_BCTHW: Tensor) -> Tensor:
    return F.silu(norm(x_BCTHW), inplace=True)


def _attention(block: "WanAttentionBlock", x_BCTHW: Tensor) -> Tensor:
    """Attention of one head within each frame, added to `x_BCTHW` in place."""
    num_frames, height = x_BCTHW.shape[2:4]
    qkv_NCHW = block.to_qkv(block.norm(_frames(x_BCTHW)))
    qkv_N1SC = qkv_NCHW.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
    mixed_N1SC = F.scaled_dot_product_attention(*qkv_N1SC.chunk(3, dim=-1))
    mixed_NCHW = mixed_N1SC.squeeze(1).transpose(1, 2).unflatten(2, (height, -1))
    return x_BCTHW.add_(_clip(block.proj(_in_order(mixed_NCHW)), num_frames))


def _upsample(block: "WanResample", x_BCTHW: Tensor, carry: Carry) -> Tensor:
    """Twice the frames but for the clip's first, then twice the rows and columns, and a convolution."""
    if block.mode == "upsample3d":
        x_BCTHW = _double_frames(block.time_conv, x_BCTHW, carry)
    _, conv = block.resample
    return _clip(conv(_in_order(_double_size(_frames(x_BCTHW)))), x_BCTHW.shape[2])


def _double_frames(conv: "WanCausalConv3d", x_BCTHW: Tensor, carry: Carry) -> Tensor:
    """The convolution makes two frames of each. The clip's first frame stays one and is not seen by it."""
    if not carry.is_first:
        return _interleaved(_causal_conv(conv, x_BCTHW, carry))
    first, rest = x_BCTHW[:, :, :1], x_BCTHW[:, :, 1:]
    if not rest.shape[2]:
        carry.before(conv, rest)
        return first
    return torch.cat([first, _interleaved(_causal_conv(conv, rest, carry))], dim=2)


def _interleaved(x_BCTHW: Tensor) -> Tensor:
    """[B, 2C, T, H, W] -> [B, C, 2T, H, W]: the channels of each frame are those of two frames."""
    _, _, num_frames, *size = x_BCTHW.shape
    pairs = x_BCTHW.unflatten(1, (2, -1)).movedim(1, 3)
    return _reshaped(pairs, (2 * num_frames, *size))


def _double_size(x_NCHW: Tensor) -> Tensor:
    """Each value four times. The values of diffusers' nearest upsampling, which goes through float32."""
    height, width = x_NCHW.shape[2:]
    fourfold = x_NCHW[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return _reshaped(fourfold, (2 * height, 2 * width))


def _reshaped(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, C, *any] -> [B, C, *size]; channels that lie together stay so."""
    batch, channels = x.shape[:2]
    if channels_lie_together(x):
        return x.movedim(1, -1).reshape(batch, *size, channels).movedim(-1, 1)
    return x.reshape(batch, channels, *size)


def _frames(x_BCTHW: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [BT, C, H, W], a view of one clip."""
    return _in_order(x_BCTHW.transpose(1, 2).flatten(0, 1))


def _clip(x_NCHW: Tensor, num_frames: int) -> Tensor:
    """[BT, C, H, W] -> [B, C, T, H, W], a view."""
    return x_NCHW.unflatten(0, (-1, num_frames)).transpose(1, 2)


def _causal_conv(conv: "WanCausalConv3d", x_BCTHW: Tensor, carry: Carry) -> Tensor:
    """A convolution over time that sees the frames before the piece; (3, 3, 3) or (3, 1, 1)."""
    x_BCTHW = _in_order(x_BCTHW)
    seen = torch.cat([carry.before(conv, x_BCTHW), x_BCTHW], dim=2)
    _, height, width = conv.kernel_size
    return _convolved(conv, seen, padding=(0, height // 2, width // 2))


def _in_order(x: Tensor) -> Tensor:
    """The same tensor [B, C, ...]; channels that lie together have the strides by which PyTorch knows it.

    Along axes of one element, a piece's only frame, operations leave strides behind that it takes for another
    order, and what follows would be copied.
    """
    last = x.movedim(1, -1)
    if not channels_lie_together(x) or not last.is_contiguous():
        return x
    strides = [math.prod(last.shape[axis + 1 :]) for axis in range(last.ndim)]
    return last.as_strided(last.shape, strides).movedim(-1, 1)


def _pointwise_conv(conv: "WanCausalConv3d", x_BCTHW: Tensor) -> Tensor:
    """diffusers' own call would copy its input, padded by nothing."""
    return _convolved(conv, _in_order(x_BCTHW), padding=(0, 0, 0))


def _convolved(conv: "WanCausalConv3d", x_BCTHW: Tensor, *, padding: tuple[int, int, int]) -> Tensor:
    """oneDNN's convolution in float32 on a CPU: conv3d takes a way for few values that is much slower."""
    is_plain = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype == torch.float32
    if is_plain and torch.backends.mkldnn.is_available():
        once = (1, 1, 1)
        return torch.mkldnn_convolution(x_BCTHW, conv.weight, conv.bias, padding, once, once, 1)
    return F.conv3d(x_BCTHW, conv.weight, conv.bias, padding=padding)
