"""Training of a small video tokenizer of Wan2.1's kind on clips of the nano world, and of more than it holds.

The network has no patches: nearly all of its work is done on single pixels, and most pixels are plain ground.
It therefore learns from crops around the objects first, and from whole frames at the end. A clip goes
through it in one piece, which diffusers' own forward cannot do (`encode_whole`, `decode_whole`).

Letters: B clips, C channels, T H W frames, rows, columns, N clips of the bank.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.writer.wan_tokenizer import write_wan_folder
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer, build_autoencoder
from cosmos_nemo.training.nano.tokenizer_clips import object_mask, training_clips, world_and_robots
from cosmos_nemo.training.nano.tokenizer_training import (
    LATENT_NOISE,
    OnStep,
    Training,
    fill,
    latent_noise,
    reconstruction_loss,
    trained_average,
    with_noise,
)
from cosmos_nemo.training.nano.world import FRAME_SIZE, NUM_FRAMES

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.autoencoder_kl_wan import (
        WanMidBlock,
        WanResample,
        WanResidualBlock,
        WanRMS_norm,
    )

_LEARNING_RATE = 0.005
"""Of the convolutions' matrices."""
_OBJECT_WEIGHT = 8.0
_WHOLE_SIZE = FRAME_SIZE
_CROP_SIZE = FRAME_SIZE // 2
_CROP_SHARE = 0.6
"""Of the steps, the first ones, which see crops of _CROP_SIZE: four times as many as whole clips."""
_BANK_CLIPS = 8192
"""At most as many clips are drawn, 2.2 MB each on the device, and cropped again and again."""
_DRAWN_AT_ONCE = 64
_STATISTICS_BATCH = 16
_SMALLEST_LENGTH = 1e-6


@dataclass(frozen=True, kw_only=True)
class TrainedWanTokenizer:
    """Weights under diffusers' names and the latents' statistics, float32 on the CPU."""

    shape: WanTokenizerShape
    weights: dict[str, Tensor]
    mean_C: Tensor
    std_C: Tensor

    def build(self, *, device: torch.device, dtype: torch.dtype = torch.float32) -> WanTokenizer:
        """The tokenizer, ready to encode and decode."""
        autoencoder = build_autoencoder(self.shape, device=device, dtype=dtype)
        fill(autoencoder, self.weights)
        return WanTokenizer(autoencoder, mean_C=self.mean_C, std_C=self.std_C).to(device)


def train_wan_tokenizer(
    shape: WanTokenizerShape,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    device: torch.device,
    learning_rate: float = _LEARNING_RATE,
    statistics_clips: int = 1024,
    uses_graphs: bool | None = None,
    state_path: Path | None = None,
    save_every_s: float = 60.0,
    on_step: OnStep = lambda step, loss: None,
    wants_to_stop: Callable[[], bool] = lambda: False,
) -> TrainedWanTokenizer:
    """A tokenizer trained from nothing; bfloat16 arithmetic on a GPU, float32 elsewhere.

    batch_size: whole clips, or four times as many crops. uses_graphs: whether CUDA graphs launch the kernels,
    None on any GPU. state_path: a file that is written every `save_every_s` seconds and at the end, and
    continued from if it is there; the result is that of an unbroken run. TokenizerStateError if it is
    damaged, or belongs to another training. TrainingStopped if `wants_to_stop` says so before the end.
    """
    average = trained_average(
        _training,
        shape,
        seed=seed,
        num_steps=num_steps,
        batch_size=batch_size,
        device=device,
        learning_rate=learning_rate,
        state_path=state_path,
        save_every_s=save_every_s,
        on_step=on_step,
        wants_to_stop=wants_to_stop,
        uses_graphs=device.type == "cuda" if uses_graphs is None else uses_graphs,
    )
    return _finished(average, shape=shape, seed=seed, num_clips=statistics_clips, device=device)


def write_wan_tokenizer(
    folder: Path, trained: TrainedWanTokenizer, *, dtype: torch.dtype = torch.float16
) -> None:
    """Writes diffusers' `vae` folder, weights in `dtype`; stages.wan_tokenizer and diffusers read it."""
    weights = {name: values.to(dtype) for name, values in trained.weights.items()}
    write_wan_folder(folder, trained.shape, weights, mean_C=trained.mean_C, std_C=trained.std_C)


def encode_whole(autoencoder: "AutoencoderKLWan", video_BCTHW: Tensor) -> Tensor:
    """The latent, not normalised, of a video -1..1 of five frames or more.

    In one piece what WanTokenizer does in several, and with gradients.
    """
    encoder = autoencoder.encoder
    x = encoder.conv_in(video_BCTHW)
    for layer in encoder.down_blocks:
        # Only resampling layers have a mode.
        x = _downsampled(layer, x) if hasattr(layer, "mode") else _residual(layer, x)
    x = encoder.conv_out(_active(encoder.norm_out, _middle(encoder.mid_block, x)))
    mode, _ = autoencoder.quant_conv(x).chunk(2, dim=1)
    return mode


def decode_whole(autoencoder: "AutoencoderKLWan", latent_BCTHW: Tensor) -> Tensor:
    """The video, not clamped, of a latent of two frames or more as `encode_whole` makes it."""
    decoder = autoencoder.decoder
    x = _middle(decoder.mid_block, decoder.conv_in(autoencoder.post_quant_conv(latent_BCTHW)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for upsampler in block.upsamplers or ():
            x = _upsampled(upsampler, x)
    return decoder.conv_out(_active(decoder.norm_out, x))


def _middle(block: "WanMidBlock", x: Tensor) -> Tensor:
    first, second = block.resnets
    return _residual(second, block.attentions[0](_residual(first, x)))


def _residual(block: "WanResidualBlock", x: Tensor) -> Tensor:
    inner = block.conv1(_active(block.norm1, x))
    return block.conv_shortcut(x) + block.conv2(_active(block.norm2, inner))


def _active(norm: "WanRMS_norm", x: Tensor) -> Tensor:
    """SiLU of the normalised values, where diffusers' layer would leave bfloat16 for float32."""
    square = (x * x).mean(dim=1, keepdim=True, dtype=torch.float32)
    return F.silu(x * square.clamp_min(_SMALLEST_LENGTH**2).rsqrt().to(x.dtype) * norm.gamma.to(x.dtype))


def _downsampled(layer: "WanResample", x: Tensor) -> Tensor:
    """Half the rows and columns; where time is halved, the first frame stays and two more make one each."""
    x = _each_frame(layer.resample, x)
    if layer.mode == "downsample3d":
        x = torch.cat((x[:, :, :1], layer.time_conv(x)), dim=2)
    return x


def _upsampled(layer: "WanResample", x: Tensor) -> Tensor:
    """Twice the rows and columns; where time is doubled, of each frame but the first two are made."""
    if layer.mode == "upsample3d":
        pairs = layer.time_conv(x[:, :, 1:])
        # In this order of axes it stays in memory as the convolutions of a GPU like it.
        pairs_BTHWC = rearrange(pairs, "b (two c) t h w -> b (t two) h w c", two=2)
        x = torch.cat((x[:, :, :1], pairs_BTHWC.movedim(-1, 1)), dim=2)
    upsample, conv = layer.resample
    return _each_frame(
        lambda frames: conv(F.interpolate(frames, scale_factor=upsample.scale_factor, mode=upsample.mode)), x
    )


def _each_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    made = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(made, "(b t) c h w -> b c t h w", b=len(x))


class _Objective(nn.Module):
    """The loss of a network that maps videos to videos."""

    def __init__(self, network: "AutoencoderKLWan") -> None:
        super().__init__()
        self.network: AutoencoderKLWan = network

    def forward(self, video_BCTHW: Tensor, weight_BCTHW: Tensor, noise_BCTHW: Tensor) -> Tensor:
        """weight: of a pixel, one for its three colours; noise: in standard deviations of the latent's."""
        is_cuda = video_BCTHW.is_cuda
        # The order in memory that the convolutions of a GPU like; the layers keep it.
        layout = torch.channels_last_3d if is_cuda else torch.preserve_format
        # A cast that is kept would be a tensor outside the CUDA graph.
        with torch.autocast(video_BCTHW.device.type, torch.bfloat16, enabled=is_cuda, cache_enabled=False):
            latent = encode_whole(self.network, video_BCTHW.to(memory_format=layout))
            made = decode_whole(self.network, with_noise(latent, noise_BCTHW))
        with torch.autocast(video_BCTHW.device.type, enabled=False):
            return reconstruction_loss(made, video_BCTHW, weight=weight_BCTHW, latent=latent)


class _Bank:
    """Clips drawn once, from which crops are taken."""

    def __init__(self, count: int, *, seed: int, device: torch.device) -> None:
        """Levels of the three colours, then the mask of the objects, uint8 [N, 4, T, H, W]."""
        sizes = (count, 4, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)
        self.clips_NCTHW = torch.empty(sizes, dtype=torch.uint8, device=device)
        for i in range(0, count, _DRAWN_AT_ONCE):
            some = self.clips_NCTHW[i : i + _DRAWN_AT_ONCE]
            some.copy_(_with_mask(training_clips(len(some), seed=seed + 4 * i, device=device)))

    def crops(self, count: int, *, size: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
        """Videos -1..1 of `size` rows and columns about where an object is at some time; weights of pixels.

        dice: on the clips' device.
        """
        clips, device = self.clips_NCTHW, self.clips_NCTHW.device
        num_clips, channels, num_frames, height, _ = clips.shape
        which_B = torch.randint(num_clips, (count,), generator=dice, device=device)
        moment_B = torch.randint(num_frames, (count,), generator=dice, device=device)
        centre_B2 = _centres(clips[which_B, 3, moment_B])
        shift_B2 = size * (torch.rand(count, 2, generator=dice, device=device) - 0.5)
        start_B2 = (centre_B2 + shift_B2 - size / 2).round().clamp(0, height - size).long()
        rows_BH, columns_BW = (start_B2[:, i, None] + torch.arange(size, device=device) for i in (0, 1))
        crop_BCTHW = clips[
            which_B[:, None, None, None, None],
            torch.arange(channels, device=device)[:, None, None, None],
            torch.arange(num_frames, device=device)[:, None, None],
            rows_BH[:, None, None, :, None],
            columns_BW[:, None, None, None, :],
        ]
        return crop_BCTHW[:, :3].float() / 127.5 - 1, 1 + _OBJECT_WEIGHT * crop_BCTHW[:, 3:].float()


def _with_mask(video_BCTHW: Tensor) -> Tensor:
    levels = ((video_BCTHW + 1) * 127.5).round()
    return torch.cat((levels, object_mask(video_BCTHW)), dim=1)


def _centres(mask_BHW: Tensor) -> Tensor:
    """Mean row and column of what is masked, [B, 2]; 0 where nothing is."""
    mask = mask_BHW.float()
    along = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.float32)
    sums = torch.stack(((mask.sum(2) * along).sum(1), (mask.sum(1) * along).sum(1)), dim=1)
    return sums / mask.sum((1, 2)).clamp_min(1)[:, None]


def _training(
    shape: WanTokenizerShape,
    *,
    seed: int,
    learning_rate: float,
    num_steps: int,
    batch_size: int,
    device: torch.device,
    uses_graphs: bool,
) -> Training:
    """The training at its beginning. Crops and noise depend on seed and step alone."""
    network = build_autoencoder(shape, device=device, dtype=torch.float32)
    fill(network, _initial_weights(network, seed=seed))
    num_crops = batch_size * (_WHOLE_SIZE // _CROP_SIZE) ** 2
    bank = _Bank(min(_BANK_CLIPS, num_crops * num_steps), seed=seed * 1_000_003, device=device)
    crop_steps = round(_CROP_SHARE * num_steps)

    def inputs(step: int) -> tuple[Tensor, Tensor, Tensor]:
        dice = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        is_crop = step < crop_steps
        count, size = (num_crops, _CROP_SIZE) if is_crop else (batch_size, _WHOLE_SIZE)
        video, weight = bank.crops(count, size=size, dice=dice)
        frames = 1 + (video.shape[2] - 1) // shape.temporal_compression
        side = size // shape.spatial_compression
        noise = latent_noise((count, shape.latent_channels, frames, side, side), dice=dice)
        return video, weight, noise

    return Training(
        network,
        _Objective(network),
        inputs,
        learning_rate=learning_rate,
        num_steps=num_steps,
        uses_graphs=uses_graphs,
    )


def _initial_weights(network: "AutoencoderKLWan", *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Variance-keeping convolutions; what is added to a shortcut starts small, and so does the video.

    What halves rows and columns begins as a mean, what doubles them as a change of channels, and what works
    along time with the last frame it sees, since the first frame of a clip passes it by. The posterior's
    variance depends on nothing, and no loss on it: those weights start at zero and stay there.
    """
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith(".bias"):
            yield name, torch.zeros(parameter.shape)
        elif name.endswith(".gamma"):
            yield name, torch.ones(parameter.shape)
        else:
            values = torch.randn(parameter.shape, generator=dice) / math.sqrt(parameter[0].numel())
            yield name, _began(name, values)


def _began(name: str, values: Tensor) -> Tensor:
    """The weights of a convolution that begins with the random `values`, which keep the variance."""
    outputs, inputs = values.shape[:2]
    same = torch.eye(inputs)
    if name.endswith(".resample.1.weight"):
        alone = torch.zeros_like(values)
        if outputs == inputs:
            alone[..., :2, :2] = same[..., None, None] / 4
        else:
            # Of nine equal pixels' variance one has the ninth part.
            alone[..., 1, 1] = 3 * values[..., 1, 1]
        return alone
    if ".time_conv." in name:
        values = 0.1 * values
        values[:, :, -1, 0, 0] += same.repeat(outputs // inputs, 1)
    elif name.endswith((".conv2.weight", ".proj.weight")) or name == "decoder.conv_out.weight":
        values = 0.1 * values
    elif name == "quant_conv.weight":
        values[outputs // 2 :] = 0
    return values


def _finished(
    average: Mapping[str, Tensor],
    *,
    shape: WanTokenizerShape,
    seed: int,
    num_clips: int,
    device: torch.device,
) -> TrainedWanTokenizer:
    """The averaged weights, with statistics over `num_clips` clips of trained scenes."""
    network = build_autoencoder(shape, device=device, dtype=torch.float32)
    fill(network, average)
    mean_C, std_C = _latent_statistics(network, seed=seed, num_clips=num_clips, device=device)
    weights = {name: values.cpu().clone() for name, values in average.items()}
    # A sample of the posterior has about the noise that the decoder has learnt to bear.
    weights["quant_conv.bias"][shape.latent_channels :] = 2 * (LATENT_NOISE / 2 * std_C).log()
    return TrainedWanTokenizer(shape=shape, weights=weights, mean_C=mean_C, std_C=std_C)


@torch.no_grad()
def _latent_statistics(
    network: "AutoencoderKLWan", *, seed: int, num_clips: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float32 on the CPU."""
    dice = torch.Generator().manual_seed(seed)
    sums: list[tuple[Tensor, Tensor]] = []
    for begin in range(0, num_clips, _STATISTICS_BATCH):
        count = min(_STATISTICS_BATCH, num_clips - begin)
        latent = encode_whole(network, world_and_robots(count, 0, dice=dice, device=device)).double()
        sums.append((latent.mean((2, 3, 4)).sum(0).cpu(), latent.square().mean((2, 3, 4)).sum(0).cpu()))
    mean_C, square_C = (sum(parts, torch.zeros(())) / num_clips for parts in zip(*sums, strict=True))
    std_C = (square_C - mean_C.square()).clamp_min(1e-8).sqrt()
    return mean_C.float(), std_C.float()
