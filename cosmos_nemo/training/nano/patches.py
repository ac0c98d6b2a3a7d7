"""Training of a network of the AutoencoderKLCosmos kind on Haar patches instead of pixels.

Diffusers' patchers are left out, and one orthogonal matrix does what they do, much faster.

Letters: B clips, C channels, T H W frames, rows, columns (of the clip or of the patches), P the 64 pixels
of a patch or its 64 sub-bands.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_nemo.training.nano.tokenizer_clips import object_mask
from cosmos_nemo.training.nano.tokenizer_training import Training, fill, reconstruction_loss

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCosmos

_OBJECT_WEIGHT = 8.0

Between = Callable[..., Tensor]
"""What the decoder is given of the encoder's latent and of the inputs beyond the clip."""


def patch_training(
    network: "AutoencoderKLCosmos",
    between: Between,
    inputs: Callable[[int], tuple[Tensor, ...]],
    *,
    seed: int,
    learning_rate: float,
    num_steps: int,
) -> Training:
    """The training of a network, whose values do not matter, at its beginning; on a GPU with CUDA graphs.

    inputs: of a step, what PatchObjective takes.
    """
    fill(network, initial_weights(network, seed=seed))
    objective = PatchObjective(network, haar_basis(network), between)
    # The basis does the patchers' work.
    network.encoder.patch_embed = nn.Identity()
    network.decoder.unpatch_embed = nn.Identity()
    return Training(
        network,
        objective,
        inputs,
        learning_rate=learning_rate,
        num_steps=num_steps,
        uses_graphs=next(network.parameters()).is_cuda,
    )


def blocks_and_weight(video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """What PatchObjective takes of a video -1..1."""
    return blocks_of(video_BCTHW).contiguous(), loss_weight(video_BCTHW)


class PatchObjective(nn.Module):
    """The loss of a network that maps patches to patches."""

    def __init__(self, network: "AutoencoderKLCosmos", basis_PP: Tensor, between: Between) -> None:
        super().__init__()
        self.network: AutoencoderKLCosmos = network
        self.basis_PP, self.between = basis_PP, between

    def forward(self, blocks_BTHWCP: Tensor, weight_BTHWCP: Tensor, *others: Tensor) -> Tensor:
        """others: for `between`."""
        is_cuda = blocks_BTHWCP.is_cuda
        # A cast that is kept would be a tensor outside the CUDA graph.
        with torch.autocast(blocks_BTHWCP.device.type, torch.bfloat16, enabled=is_cuda, cache_enabled=False):
            latent = self.network.encode(to_patches(blocks_BTHWCP, self.basis_PP)).latent_dist.mode()
            patches = self.network.decode(self.between(latent, *others)).sample
        with torch.autocast(blocks_BTHWCP.device.type, enabled=False):
            blocks = from_patches(patches.float(), self.basis_PP)
            return reconstruction_loss(blocks, blocks_BTHWCP, weight=weight_BTHWCP, latent=latent)


def initial_weights(network: nn.Module, *, seed: int) -> Iterator[tuple[str, Tensor]]:
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
def haar_basis(autoencoder: "AutoencoderKLCosmos") -> Tensor:
    """Sub-bands of each pixel [pixel, sub-band], as diffusers' patcher orders them (spec 6.1).

    Its rows are orthogonal and of length 1/8: the inverse is 64 times the transpose.
    """
    size = autoencoder.config.patch_size
    impulses_PTHW = torch.eye(size**3).unflatten(1, (size, size, size))
    # The patcher repeats a clip's first frame: the pixels of interest follow it.
    clips = F.pad(impulses_PTHW, (0, 0, 0, 0, 1, 0)).unsqueeze(1)
    device = autoencoder.encoder.patch_embed.wavelets.device
    return autoencoder.encoder.patch_embed(clips.to(device))[:, :, 1, 0, 0]


def blocks_of(video_BCTHW: Tensor) -> Tensor:
    """The pixels of each patch [B, T, H, W, C, P], the first frame of the clip four times."""
    padded = torch.cat((video_BCTHW[:, :, :1].expand(-1, -1, 3, -1, -1), video_BCTHW), dim=2)
    return rearrange(padded, "b c (t i) (h j) (w k) -> b t h w c (i j k)", i=4, j=4, k=4)


def loss_weight(video_BCTHW: Tensor) -> Tensor:
    """Weights of the pixels as `blocks_of` has them; none for the three copies of the first frame."""
    weight = blocks_of(1 + _OBJECT_WEIGHT * object_mask(video_BCTHW))
    weight[:, 0, ..., :48] = 0
    return weight


def to_patches(blocks_BTHWCP: Tensor, basis_PP: Tensor) -> Tensor:
    """Sub-bands [B, P C, T, H, W] as the patcher has them, of what `blocks_of` gives."""
    return rearrange(blocks_BTHWCP @ basis_PP, "b t h w c p -> b (p c) t h w")


def from_patches(patches_BCTHW: Tensor, basis_PP: Tensor) -> Tensor:
    """The inverse of `to_patches`."""
    return rearrange(patches_BCTHW, "b (p c) t h w -> b t h w c p", c=3) @ (64 * basis_PP.T)
