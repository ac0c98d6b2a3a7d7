"""Training of a small video tokenizer on clips of the nano world, and of more than the world holds.

The network is trained on Haar patches: diffusers' patchers are left out, and one orthogonal matrix does what
they do, much faster.

Letters: B clips, C channels, T H W frames, rows, columns (of the clip or of the patches), P the 64 pixels
of a patch or its 64 sub-bands.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.writer.video_tokenizer import (
    write_tokenizer_safetensors,
    write_tokenizer_statistics,
)
from cosmos_nemo.models.video_tokenizer.encoding import encode
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder
from cosmos_nemo.training.nano.world import (
    GROUNDS,
    MOTIONS,
    TRAINED,
    draw_clips,
    draw_subject_clips,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos

OnStep = Callable[[int, float], None]
"""Takes the number of finished steps and the loss of the last one that was read."""

_LEARNING_RATE = 0.0075
"""Of the convolutions' matrices; the rest takes _REST_RATE times as much."""
_REST_RATE = 0.07
_WARM_UP = 0.05
_BETAS = (0.9, 0.98)
_MOMENTUM = 0.95
_LARGEST_GRADIENT = 1.0
_AVERAGE = 0.998
_LATENT_NOISE = 0.15
"""At most this part of a channel's standard deviation, so that the decoder bears what a diffusion leaves."""
_LATENT_PENALTY = 1e-4
_OBJECT_WEIGHT = 8.0
_OBJECT_DIFFERENCE = 0.1
_ROBOT_CLIPS = tuple(product(MOTIONS, GROUNDS))
_LOSS_EVERY = 20
_STATISTICS_BATCH = 16


class TokenizerStateError(ValueError):
    """A saved state that does not belong to the training that was asked for."""


@dataclass(frozen=True, kw_only=True)
class TrainedTokenizer:
    """Weights under diffusers' names and the latents' statistics, float32 on the CPU."""

    shape: TokenizerShape
    weights: dict[str, Tensor]
    mean_CT: Tensor
    std_CT: Tensor
    image_mean_C: Tensor
    image_std_C: Tensor

    def build(self, *, device: torch.device, dtype: torch.dtype = torch.float32) -> VideoTokenizer:
        """The tokenizer, ready to encode and decode."""
        autoencoder = build_autoencoder(self.shape, device=device, dtype=dtype)
        _fill(autoencoder, self.weights)
        tokenizer = VideoTokenizer(
            autoencoder,
            mean_CT=self.mean_CT,
            std_CT=self.std_CT,
            image_mean_C=self.image_mean_C,
            image_std_C=self.image_std_C,
        )
        return tokenizer.to(device)


@dataclass(frozen=True)
class Psnr:
    """Peak signal-to-noise ratio in decibels over all pixels and over those of the objects and their rims."""

    frame: float
    object: float


def train_video_tokenizer(
    shape: TokenizerShape,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    device: torch.device,
    learning_rate: float = _LEARNING_RATE,
    statistics_clips: int = 1024,
    state_path: Path | None = None,
    save_every_s: float = 60.0,
    on_step: OnStep = lambda step, loss: None,
) -> TrainedTokenizer:
    """A tokenizer trained from nothing; bfloat16 arithmetic on a GPU, float32 elsewhere.

    state_path: a file that is written every `save_every_s` seconds and at the end, and continued from if it
    is there; the result is that of an unbroken run. TokenizerStateError if it belongs to another training.
    """
    settings = {
        "shape": repr(dataclasses.astuple(shape)),
        "seed": seed,
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    training = _Training(shape, seed=seed, learning_rate=learning_rate, num_steps=num_steps, device=device)
    if state_path is not None and state_path.is_file():
        training.load(_read_state(state_path, settings=settings, device=device))
    saved_at = time.monotonic()
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False):
        for step, loss in _steps(training, batch_size=batch_size):
            is_last = step == num_steps
            if state_path is not None and (is_last or time.monotonic() - saved_at > save_every_s):
                _write_state(state_path, {"settings": settings, **training.save()})
                saved_at = time.monotonic()
            on_step(step, loss)
    return _finished(training.average, shape=shape, seed=seed, num_clips=statistics_clips, device=device)


def write_video_tokenizer(
    folder: Path, trained: TrainedTokenizer, *, dtype: torch.dtype = torch.float16
) -> None:
    """Writes tokenizer.safetensors, weights in `dtype`, mean_std.pt and image_mean_std.pt.

    The folder is made if need be; stages.tokenizer reads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: values.to(dtype) for name, values in trained.weights.items()}
    write_tokenizer_safetensors(folder, trained.shape, weights)
    write_tokenizer_statistics(
        folder,
        video=(trained.mean_CT, trained.std_CT),
        image=(trained.image_mean_C, trained.image_std_C),
    )


@torch.no_grad()
def measure_psnr(tokenizer: VideoTokenizer, clips_BTHWC: Tensor) -> Psnr:
    """How well clips, uint8 0..255 on the tokenizer's device, come back after encoding and decoding."""
    sums = torch.zeros(4, dtype=torch.float64, device=clips_BTHWC.device)
    for clip_BTHWC in clips_BTHWC.split(4):
        video = to_video(clip_BTHWC)
        decoded = tokenizer.decode(tokenizer.encode(video)).float().clamp(-1, 1)
        error = ((decoded - video) / 2).square().mean(1, keepdim=True)
        objects = object_mask(video)
        sums += torch.stack(
            (error.sum(), torch.ones_like(error).sum(), (error * objects).sum(), objects.sum())
        )
    frame, pixels, inside, object_pixels = sums.tolist()
    return Psnr(-10 * math.log10(frame / pixels), -10 * math.log10(inside / object_pixels))


def to_video(clips_BTHWC: Tensor) -> Tensor:
    """Float -1..1 [B, C, T, H, W] of clips uint8 0..255."""
    return rearrange(clips_BTHWC, "b t h w c -> b c t h w").float() / 127.5 - 1


def object_mask(video_BCTHW: Tensor) -> Tensor:
    """1 where a clip differs from its commonest colour, and two pixels around; else 0 [B, 1, T, H, W]."""
    some = video_BCTHW[:, :, ::4, ::4, ::4].flatten(2)
    ground_BC111 = some.median(dim=2).values[:, :, None, None, None]
    differs = ((video_BCTHW - ground_BC111).abs().amax(1) > _OBJECT_DIFFERENCE).float()
    return F.max_pool2d(differs, kernel_size=5, stride=1, padding=2).unsqueeze(1)


def draw_varied_clips(count: int, *, seed: int, device: torch.device) -> Tensor:
    """Videos -1..1 [B, C, T, H, W] of what the world does not hold.

    Any colours, colours that change across the frame, objects of two tones, two objects, other directions.
    """
    dice = torch.Generator().manual_seed(seed)
    below = _varied_layer(count, dice=dice, device=device)
    above = _varied_layer(count, dice=dice, device=device)
    is_double = (torch.rand(count, generator=dice) < 0.5).to(device)[:, None, None, None, None]
    video = torch.where((object_mask(above) > 0) & is_double, above, below)
    ramp = torch.linspace(-1, 1, video.shape[-1], device=device)
    slope_2BC = (0.3 * torch.randn(2, count, 3, generator=dice)).to(device)[..., None, None, None]
    return (video + slope_2BC[0] * ramp + slope_2BC[1] * ramp[:, None]).clamp(-1, 1)


def _varied_layer(count: int, *, dice: torch.Generator, device: torch.device) -> Tensor:
    """Clips of the world and of the robot, their colours mixed at random, transposed or reversed."""
    video = _world_and_robots(count - count // 2, count // 2, dice=dice, device=device)
    mix_BCC = (0.8 * torch.randn(count, 3, 3, generator=dice)).to(device)
    shift_BC111 = (0.4 * torch.randn(count, 3, generator=dice)).to(device)[..., None, None, None]
    video = (torch.einsum("bdc,bcthw->bdthw", mix_BCC, video) + shift_BC111).clamp(-1, 1)
    if torch.rand((), generator=dice) < 0.5:
        video = video.transpose(3, 4)
    return video.flip(2) if torch.rand((), generator=dice) < 0.5 else video


def _world_and_robots(
    num_scenes: int, num_robots: int, *, dice: torch.Generator, device: torch.device
) -> Tensor:
    """Videos -1..1 of random trained scenes, one at least, then of the robot."""
    scenes = [TRAINED[i] for i in torch.randint(len(TRAINED), (num_scenes,), generator=dice).tolist()]
    robots = torch.randint(len(_ROBOT_CLIPS), (num_robots,), generator=dice).tolist()
    seed = int(torch.randint(2**31, (), generator=dice))
    clips = [draw_clips(scenes, seed=seed, device=device)]
    if robots:
        clips.append(draw_subject_clips([_ROBOT_CLIPS[i] for i in robots], seed=seed + 1, device=device))
    return to_video(torch.cat(clips))


def _training_clips(count: int, *, seed: int, device: torch.device) -> Tensor:
    """Videos -1..1: half of them of the world, a quarter of the robot, a quarter of other things."""
    dice, quarter = torch.Generator().manual_seed(seed), count // 4
    video = _world_and_robots(count - 2 * quarter, quarter, dice=dice, device=device)
    return torch.cat((video, draw_varied_clips(quarter, seed=seed + 1, device=device))) if quarter else video


class _Orthogonal(torch.optim.Optimizer):
    """Momentum whose every step is made an orthogonal matrix: Muon, by Keller Jordan and others (2024).

    A convolution counts as the matrix [outputs, inputs * kernel]; those of one shape are worked on together.
    Adam takes many times as many steps here, because the sub-bands of a patch differ so much in size.
    """

    def __init__(self, parameters: Sequence[Tensor], *, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; there is no closure."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for (outputs, inputs), parameters in alike.items():
                updates = _orthogonalised(torch.stack([self._direction(each) for each in parameters]))
                rate = group["lr"] * max(1, outputs / inputs) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.sub_(update.view_as(parameter), alpha=rate)

    def _direction(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        return parameter.grad.lerp(state["momentum"], _MOMENTUM).flatten(1)


def _orthogonalised(matrices: Tensor) -> Tensor:
    """Nearly the orthogonal factors of [N, rows, columns], by five Newton-Schulz steps."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


class _Objective(nn.Module):
    """The loss of a network that maps patches to patches."""

    def __init__(self, network: "AutoencoderKLCosmos", basis_PP: Tensor) -> None:
        super().__init__()
        self.network: AutoencoderKLCosmos = network
        self.basis_PP = basis_PP

    def forward(self, blocks_BTHWCP: Tensor, weight_BTHWCP: Tensor, noise_BCTHW: Tensor) -> Tensor:
        """noise: in standard deviations of the latent's channels."""
        is_cuda = blocks_BTHWCP.is_cuda
        # A cast that is kept would be a tensor outside the CUDA graph.
        with torch.autocast(blocks_BTHWCP.device.type, torch.bfloat16, enabled=is_cuda, cache_enabled=False):
            latent = self.network.encode(_to_patches(blocks_BTHWCP, self.basis_PP)).latent_dist.mode()
            # The noise grows with the latent, which has nothing to gain from being large.
            std = latent.float().std(dim=(0, 2, 3, 4), keepdim=True)
            patches = self.network.decode(latent + std * noise_BCTHW).sample
        with torch.autocast(blocks_BTHWCP.device.type, enabled=False):
            error = (_from_patches(patches.float(), self.basis_PP) - blocks_BTHWCP).abs()
            pixels = (weight_BTHWCP * (error + error.square())).sum() / (3 * weight_BTHWCP.sum())
            return pixels + _LATENT_PENALTY * latent.float().square().mean()


class _Training:
    """Network, its running average and optimisers, and the number of finished steps."""

    def __init__(
        self, shape: TokenizerShape, *, seed: int, learning_rate: float, num_steps: int, device: torch.device
    ) -> None:
        self.shape, self.device, self.seed, self.num_steps, self.step = shape, device, seed, num_steps, 0
        self.network = build_autoencoder(shape, device=device, dtype=torch.float32)
        _fill(self.network, _initial_weights(self.network, seed=seed))
        self.network.requires_grad_(True)
        self.average = {name: values.detach().clone() for name, values in self.network.named_parameters()}
        self.objective: Callable[..., Tensor] = _Objective(self.network, _haar_basis(self.network))
        # The basis does the patchers' work.
        self.network.encoder.patch_embed = nn.Identity()
        self.network.decoder.unpatch_embed = nn.Identity()
        matrices = [values for values in self.network.parameters() if values.ndim > 1]
        others = [values for values in self.network.parameters() if values.ndim == 1]
        self.optimizers = (
            _Orthogonal(matrices, lr=learning_rate),
            torch.optim.Adam(
                others, lr=_REST_RATE * learning_rate, betas=_BETAS, fused=device.type == "cuda"
            ),
        )
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(each, self._relative_rate) for each in self.optimizers
        ]

    def _relative_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        begin = max(1, round(_WARM_UP * self.num_steps))
        return min((step + 1) / begin, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.num_steps)))

    def prepare(self, batch_size: int) -> None:
        """On a GPU: records the loss and its gradients as CUDA graphs, as launching would take longer."""
        if self.device.type == "cuda":
            samples = self._inputs(batch_size)
            graphed: Any = torch.cuda.make_graphed_callables(self.objective, samples)
            self.objective = graphed

    def advance(self, batch_size: int) -> Tensor:
        """One step; its loss, still on the device. Clips and noise depend on seed and step alone."""
        loss = self.objective(*self._inputs(batch_size))
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.step += 1
        self._update_average()
        return loss.detach()

    def _inputs(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        seed = (self.seed * 1_000_003 + self.step) * 4
        video = _training_clips(batch_size, seed=seed, device=self.device)
        dice = torch.Generator(self.device).manual_seed(seed)
        frames = 1 + (video.shape[2] - 1) // self.shape.temporal_compression
        rows, columns = (size // self.shape.spatial_compression for size in video.shape[3:])
        sizes = (batch_size, self.shape.latent_channels, frames, rows, columns)
        level = _LATENT_NOISE * torch.rand(batch_size, 1, 1, 1, 1, generator=dice, device=self.device)
        noise = level * torch.randn(sizes, generator=dice, device=self.device)
        return _blocks(video).contiguous(), _loss_weight(video), noise

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(_AVERAGE, self.step / (self.step + 9))
        parameters = [values.detach() for values in self.network.parameters()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - keep)

    def save(self) -> dict[str, Any]:
        """What `load` takes, tensors on the device."""
        return {
            "network": {name: values.detach() for name, values in self.network.named_parameters()},
            "average": self.average,
            "optimizers": [each.state_dict() for each in self.optimizers],
            "schedules": [each.state_dict() for each in self.schedules],
            "step": self.step,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues where `save` was called."""
        _fill(self.network, state["network"])
        for name, values in self.average.items():
            values.copy_(state["average"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.step = state["step"]


def _steps(training: _Training, *, batch_size: int) -> Iterator[tuple[int, float]]:
    """The steps that are left: how many are finished, and the last loss that was read."""
    if training.step < training.num_steps:
        training.prepare(batch_size)
    shown = math.nan
    while training.step < training.num_steps:
        loss = training.advance(batch_size)
        # Reading the loss waits for the device.
        if training.step % _LOSS_EVERY == 1 or training.step == training.num_steps:
            shown = float(loss)
        yield training.step, shown


def _write_state(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    torch.save(state, partial)
    partial.replace(path)


def _read_state(path: Path, *, settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    state = torch.load(path, map_location=device, weights_only=True)
    other = [name for name, value in settings.items() if state["settings"][name] != value]
    if other:
        name = other[0]
        raise TokenizerStateError(
            f"{path} belongs to a training with {name} {state['settings'][name]}, not {settings[name]}: "
            "remove it, or name another file"
        )
    return state


def _initial_weights(network: nn.Module, *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Variance-keeping convolutions; what is added to a shortcut starts small, and so does the video."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith(".bias"):
            yield name, torch.zeros(parameter.shape)
        elif name.endswith("norm.weight"):
            yield name, torch.ones(parameter.shape)
        else:
            is_added = ".conv2.conv_t." in name or ".to_out." in name or "samplers.0.conv" in name
            is_small = (is_added and ".conv3." not in name) or name.startswith("decoder.conv_out.conv_t.")
            gain = 0.1 if is_small else 1.0
            scale = gain / math.sqrt(math.prod(parameter.shape[1:]))
            yield name, scale * torch.randn(parameter.shape, generator=dice)


@torch.no_grad()
def _fill(network: nn.Module, weights: Mapping[str, Tensor] | Iterator[tuple[str, Tensor]]) -> None:
    values = dict(weights)
    for name, parameter in network.named_parameters():
        parameter.copy_(values[name])


@torch.no_grad()
def _haar_basis(autoencoder: "AutoencoderKLCosmos") -> Tensor:
    """Sub-bands of each pixel [pixel, sub-band], as diffusers' patcher orders them (spec 6.1).

    Its rows are orthogonal and of length 1/8: the inverse is 64 times the transpose.
    """
    size = autoencoder.config.patch_size
    impulses_PTHW = torch.eye(size**3).unflatten(1, (size, size, size))
    # The patcher repeats a clip's first frame: the pixels of interest follow it.
    clips = F.pad(impulses_PTHW, (0, 0, 0, 0, 1, 0)).unsqueeze(1)
    device = autoencoder.encoder.patch_embed.wavelets.device
    return autoencoder.encoder.patch_embed(clips.to(device))[:, :, 1, 0, 0]


def _blocks(video_BCTHW: Tensor) -> Tensor:
    """The pixels of each patch [B, T, H, W, C, P], the first frame of the clip four times."""
    padded = torch.cat((video_BCTHW[:, :, :1].expand(-1, -1, 3, -1, -1), video_BCTHW), dim=2)
    return rearrange(padded, "b c (t i) (h j) (w k) -> b t h w c (i j k)", i=4, j=4, k=4)


def _loss_weight(video_BCTHW: Tensor) -> Tensor:
    """Weights of the pixels as `_blocks` has them; none for the three copies of the first frame."""
    weight = _blocks(1 + _OBJECT_WEIGHT * object_mask(video_BCTHW))
    weight[:, 0, ..., :48] = 0
    return weight


def _to_patches(blocks_BTHWCP: Tensor, basis_PP: Tensor) -> Tensor:
    return rearrange(blocks_BTHWCP @ basis_PP, "b t h w c p -> b (p c) t h w")


def _from_patches(patches_BCTHW: Tensor, basis_PP: Tensor) -> Tensor:
    return rearrange(patches_BCTHW, "b (p c) t h w -> b t h w c p", c=3) @ (64 * basis_PP.T)


def _finished(
    average: Mapping[str, Tensor],
    *,
    shape: TokenizerShape,
    seed: int,
    num_clips: int,
    device: torch.device,
) -> TrainedTokenizer:
    """The averaged weights, with statistics over `num_clips` clips of trained scenes."""
    network = build_autoencoder(shape, device=device, dtype=torch.float32)
    _fill(network, average)
    mean_CT, std_CT = _latent_statistics(network, seed=seed, num_clips=num_clips, device=device)
    # Longer clips than those here take the last frame's; an image's latent is that of a clip's first frame.
    frames = torch.arange(shape.statistics_frames).clamp(max=mean_CT.shape[1] - 1)
    return TrainedTokenizer(
        shape=shape,
        weights={name: values.cpu() for name, values in average.items()},
        mean_CT=mean_CT[:, frames],
        std_CT=std_CT[:, frames],
        image_mean_C=mean_CT[:, 0],
        image_std_C=std_CT[:, 0],
    )


def _latent_statistics(
    network: "AutoencoderKLCosmos", *, seed: int, num_clips: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C, T] over clips, rows and columns, float32 on the CPU."""
    dice = torch.Generator().manual_seed(seed)
    sums: list[tuple[Tensor, Tensor]] = []
    for begin in range(0, num_clips, _STATISTICS_BATCH):
        count = min(_STATISTICS_BATCH, num_clips - begin)
        latent = encode(network, _world_and_robots(count, 0, dice=dice, device=device)).double()
        sums.append((latent.mean((3, 4)).sum(0).cpu(), latent.square().mean((3, 4)).sum(0).cpu()))
    mean_CT, square_CT = (sum(parts, torch.zeros(())) / num_clips for parts in zip(*sums, strict=True))
    std_CT = (square_CT - mean_CT.square()).clamp_min(1e-8).sqrt()
    return mean_CT.float(), std_CT.float()
