"""Clips [B, C, T, H, W] without needless copies, whichever of channels and pixels lie together in memory.

cuDNN's convolutions are made for channels that lie together ("channels last"), those of a CPU for pixels.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def convolved(conv: nn.Conv2d | nn.Conv3d, x_BCTHW: Tensor) -> Tensor:
    """Padded in space alone, by zeros that keep the size; of every frame by itself if two-dimensional.

    On a CPU in float32 it is oneDNN's: PyTorch takes another for few values, which is much slower.
    """
    weight = conv.weight.unsqueeze(2) if isinstance(conv, nn.Conv2d) else conv.weight
    padding, once = (0, weight.shape[3] // 2, weight.shape[4] // 2), (1, 1, 1)
    assert set(conv.stride) | set(conv.dilation) == {1} and conv.groups == 1, "another kind of convolution"
    is_plain = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype == torch.float32
    if is_plain and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x_BCTHW, weight, conv.bias, padding, once, once, 1)
    return F.conv3d(x_BCTHW, weight, conv.bias, padding=padding)


def has_channels_last(x_BCTHW: Tensor) -> bool:
    return x_BCTHW.is_contiguous(memory_format=torch.channels_last_3d)


def for_convolutions(x_BCTHW: Tensor) -> Tensor:
    """The clip as its device's convolutions want it."""
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d) if x_BCTHW.is_cuda else x_BCTHW


def in_memory_as(model_BCTHW: Tensor, x_BCTHW: Tensor) -> Tensor:
    """x with its values in the order of the other one's, also to convolutions.

    Those go by the strides of axes of length 1 too, which `contiguous` leaves as they are.
    """
    if model_BCTHW.is_contiguous() or not has_channels_last(model_BCTHW):
        return x_BCTHW.contiguous()
    _, channels, frames, height, width = x_BCTHW.shape
    line = width * channels
    strides = (frames * height * line, 1, height * line, line, channels)
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d).as_strided(x_BCTHW.shape, strides)


def joined(first_BCTHW: Tensor, second_BCTHW: Tensor) -> Tensor:
    """One after the other in time, in memory as the second one."""
    frames = first_BCTHW.shape[2]
    batch, channels, rest, *size = second_BCTHW.shape
    form = torch.channels_last_3d if has_channels_last(second_BCTHW) else torch.contiguous_format
    out = torch.empty(
        (batch, channels, frames + rest, *size),
        dtype=second_BCTHW.dtype,
        device=second_BCTHW.device,
        memory_format=form,
    )
    out[:, :, :frames] = first_BCTHW
    out[:, :, frames:] = second_BCTHW
    return out


def repeated(x_BCTHW: Tensor, *, frames: int = 1, sides: int = 1) -> Tensor:
    """Every frame `frames` times, every pixel `sides` times along rows and columns; in memory as x."""
    last = has_channels_last(x_BCTHW)
    x = x_BCTHW.permute(0, 2, 3, 4, 1) if last else x_BCTHW
    axis = 1 if last else 2
    for step, times in enumerate((frames, sides, sides)):
        x = x.unsqueeze(axis + 2 * step + 1)
        x = x.expand(*x.shape[: axis + 2 * step + 1], times, *x.shape[axis + 2 * step + 2 :])
    for step in range(3):
        x = x.flatten(axis + step, axis + step + 1)
    x = x.contiguous()  # a single frame repeated is a view until here
    return x.permute(0, 4, 1, 2, 3) if last else x


def interleaved(x_BCTHW: Tensor) -> Tensor:
    """[B, 2C, T, H, W] -> [B, C, 2T, H, W]: the channels of each frame are those of two; in memory as x."""
    if not has_channels_last(x_BCTHW):
        return rearrange(x_BCTHW, "b (two c) t h w -> b c (t two) h w", two=2).contiguous()
    pairs = x_BCTHW.permute(0, 2, 3, 4, 1).unflatten(4, (2, -1))
    return pairs.movedim(4, 2).flatten(1, 2).contiguous().permute(0, 4, 1, 2, 3)
