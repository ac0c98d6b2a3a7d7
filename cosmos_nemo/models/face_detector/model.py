"""RetinaFace with a ResNet body (Deng et al. 2020, arXiv:1905.00641), in the names of Resnet50_Final.pth.

B pictures, C channels, H W rows and columns, P prior boxes. Three levels of the picture are searched for
faces, of cells 8, 16 and 32 pixels wide, with two prior boxes at every cell (boxes.py).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_nemo.models.face_detector.boxes import BOXES_PER_CELL, CELL_SIZES

_MEAN_BGR = (104.0, 117.0, 123.0)
_EXPANSION = 4
"""A residual block's outer width over its inner one."""
_NARROW, _NARROW_SLOPE = 64, 0.1
"""A pyramid of up to 64 channels has leaky activations; the released one has 256 and plain ones."""


@dataclass(frozen=True, kw_only=True)
class FaceDetectorShape:
    """The widths of a detector; those of the released ResNet-50 by default."""

    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Inner widths of the body's four layers of residual blocks."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Their numbers of blocks."""
    pyramid: int = 256
    """Channels of the feature pyramid and the heads, a multiple of 4."""


class FaceDetector(nn.Module):
    """Where faces may be: for each prior box how far it is off a face, and how likely it holds one.

    The released file also has a head for the five landmarks of a face. Nobody asks for these: it is left out.
    """

    def __init__(self, shape: FaceDetectorShape) -> None:
        super().__init__()
        channels = shape.pyramid
        self.body = _Body(shape)
        self.fpn = _Pyramid([_EXPANSION * width for width in shape.widths[1:]], channels)
        self.ssh1, self.ssh2, self.ssh3 = (_Context(channels) for _ in CELL_SIZES)
        self.ClassHead = _heads(channels, numbers_per_box=2)
        self.BboxHead = _heads(channels, numbers_per_box=4)

    def forward(self, pictures_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Of what to_pictures makes: offsets [B, P, 4] for boxes.decode, probabilities of a face [B, P]."""
        levels = self.fpn(self.body(pictures_BCHW))
        contexts = (self.ssh1, self.ssh2, self.ssh3)
        features = [context(level) for context, level in zip(contexts, levels, strict=True)]
        offsets_BP4 = _per_box(self.BboxHead, features)
        logits_BP2 = _per_box(self.ClassHead, features)
        return offsets_BP4, logits_BP2.softmax(dim=-1)[..., 1]


def to_pictures(frames_BHWC: Tensor) -> Tensor:
    """What the network takes, float32 BGR [B, 3, H, W] without the mean, of RGB frames 0..255."""
    bgr_BHWC = frames_BHWC.flip(-1).float()
    return rearrange(bgr_BHWC - bgr_BHWC.new_tensor(_MEAN_BGR), "b h w c -> b c h w").contiguous()


class _Body(nn.Module):
    """ResNet without its classifier: the outputs of its last three layers, 8, 16 and 32 times smaller."""

    def __init__(self, shape: FaceDetectorShape) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, shape.stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(shape.stem)
        inputs = (shape.stem, *(_EXPANSION * width for width in shape.widths))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _residual_blocks(inputs[i], shape.widths[i], depth=shape.depths[i], stride=1 if i == 0 else 2)
            for i in range(4)
        )

    def forward(self, pictures_BCHW: Tensor) -> list[Tensor]:
        stem = F.max_pool2d(F.relu(self.bn1(self.conv1(pictures_BCHW))), 3, stride=2, padding=1)
        eighth = self.layer2(self.layer1(stem))
        sixteenth = self.layer3(eighth)
        return [eighth, sixteenth, self.layer4(sixteenth)]


def _residual_blocks(channels: int, width: int, *, depth: int, stride: int) -> nn.Sequential:
    first = _Bottleneck(channels, width, stride=stride)
    rest = [_Bottleneck(_EXPANSION * width, width, stride=1) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


class _Bottleneck(nn.Module):
    """A residual block, narrow inside; the stride is in its 3x3 convolution, unlike in He et al. 2015."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        outer = _EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outer, 1, bias=False), nn.BatchNorm2d(outer)
        same_shape = stride == 1 and channels == outer
        self.downsample = None if same_shape else _convolution(channels, outer, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        past = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(inner)) + past)


class _Pyramid(nn.Module):
    """Feature pyramid (Lin et al. 2017, arXiv:1612.03144): the coarse levels are added to the finer ones."""

    def __init__(self, inputs: list[int], channels: int) -> None:
        super().__init__()
        slope = _slope(channels)
        self.output1, self.output2, self.output3 = (
            _convolution(width, channels, size=1, slope=slope) for width in inputs
        )
        self.merge1, self.merge2 = (_convolution(channels, channels, slope=slope) for _ in range(2))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        eighth, sixteenth, last = levels
        coarse = self.output3(last)
        middle = self.output2(sixteenth)
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[-2:], mode="nearest"))
        fine = self.output1(eighth)
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[-2:], mode="nearest"))
        return [fine, middle, coarse]


class _Context(nn.Module):
    """The context module of SSH (Najibi et al. 2017, arXiv:1708.03979): fields of 3, 5 and 7 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter, slope = channels // 2, channels // 4, _slope(channels)
        self.conv3X3 = _convolution(channels, half)
        self.conv5X5_1 = _convolution(channels, quarter, slope=slope)
        self.conv5X5_2 = _convolution(quarter, quarter)
        self.conv7X7_2 = _convolution(quarter, quarter, slope=slope)
        self.conv7x7_3 = _convolution(quarter, quarter)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.conv5X5_1(x)
        fields = self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))
        return F.relu(torch.cat(fields, dim=1))


def _slope(channels: int) -> float:
    return _NARROW_SLOPE if channels <= _NARROW else 0.0


def _convolution(
    channels: int, outputs: int, *, size: int = 3, stride: int = 1, slope: float | None = None
) -> nn.Sequential:
    """Convolution and normalisation; with `slope` also the activation, which has no weights."""
    parts: list[nn.Module] = [
        nn.Conv2d(channels, outputs, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*parts, *([] if slope is None else [nn.LeakyReLU(slope)]))


class _Head(nn.Module):
    """Numbers for each prior box of one level: [B, boxes, numbers], in the order of boxes.prior_boxes."""

    def __init__(self, channels: int, *, numbers_per_box: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, BOXES_PER_CELL * numbers_per_box, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv1x1(x), "b (n k) h w -> b (h w n) k", n=BOXES_PER_CELL)


def _heads(channels: int, *, numbers_per_box: int) -> nn.ModuleList:
    return nn.ModuleList(_Head(channels, numbers_per_box=numbers_per_box) for _ in CELL_SIZES)


def _per_box(heads: nn.ModuleList, features: list[Tensor]) -> Tensor:
    return torch.cat([head(level) for head, level in zip(heads, features, strict=True)], dim=1)
