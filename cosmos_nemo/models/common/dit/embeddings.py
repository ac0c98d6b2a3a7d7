"""What surrounds the layers: patches, timestep, the last projection (spec/predict1-diffusion.md, 1.2)."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from cosmos_nemo.models.common.dit.layers import Modulation, modulate
from cosmos_nemo.models.common.fused import Runs


class PatchEmbed(nn.Module):
    """[S, B, values of a patch] -> [S, B, D]; the released weights name the linear `proj.1`."""

    def __init__(self, patch_dim: int, hidden_size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Identity(), nn.Linear(patch_dim, hidden_size, bias=False, dtype=dtype))

    def forward(self, patches_SBP: Tensor) -> Tensor:
        return self.proj(patches_SBP)


def patchify(x_BCTHW: Tensor, patch: int) -> Tensor:
    """[S, B, C p p], tokens in the order t, h, w (w fastest), channels slowest inside a token."""
    return rearrange(x_BCTHW, "b c t (h p) (w q) -> (t h w) b (c p q)", p=patch, q=patch)


def unpatchify(tokens_SBP: Tensor, *, grid_THW: tuple[int, int, int], patch: int) -> Tensor:
    """[B, C, T, H, W]; inside a token channels are fastest: not the inverse of `patchify` (spec 1.2.9)."""
    t, h, w = grid_THW
    return rearrange(tokens_SBP, "(t h w) b (p q c) -> b c t (h p) (w q)", t=t, h=h, w=w, p=patch, q=patch)


class Timesteps(nn.Module):
    """Sinusoids of c_noise, cosines first, [B] -> [B, D] float32, or [R, B] -> [R, B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timesteps_B: Tensor) -> Tensor:
        half = self.width // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timesteps_B.device) / half
        angles = timesteps_B.float()[..., None] * torch.exp(-math.log(10000) * exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Sinusoid -> the part of every modulation that all layers share, [B, 3 D]."""

    def __init__(self, hidden_size: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size, bias=False, dtype=dtype)
        self.linear_2 = nn.Linear(hidden_size, 3 * hidden_size, bias=False, dtype=dtype)

    def forward(self, sinusoid_BD: Tensor) -> Tensor:
        return self.linear_2(nn.functional.silu(self.linear_1(sinusoid_BD)))


class FinalLayer(nn.Module):
    """Modulated norm and projection back to the values of a patch, in float32 whatever the weights are.

    What leaves here is amplified by guidance and accumulated over the steps: rounding it to bfloat16 would
    add a quarter to a sample's error, and the projection costs next to nothing.
    """

    def __init__(self, hidden_size: int, patch_dim: int, lora_dim: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_dim, bias=False, dtype=dtype)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(),
            nn.Linear(hidden_size, lora_dim, bias=False, dtype=dtype),
            nn.Linear(lora_dim, 2 * hidden_size, bias=False, dtype=dtype),
        )

    def modulation(self, timestep_BD: Tensor, lora_B3D: Tensor) -> Modulation:
        """Shift and scale; there is no gate."""
        width = timestep_BD.shape[-1]
        shift, scale = (self.adaLN_modulation(timestep_BD) + lora_B3D[..., : 2 * width]).chunk(2, dim=-1)
        return Modulation(shift, scale, torch.ones_like(shift))

    def forward(self, hidden_sBD: Tensor, by: Modulation, runs: Runs | None = None) -> Tensor:
        by = Modulation(*(part.float() for part in by))
        return nn.functional.linear(modulate(hidden_sBD.float(), by, runs), self.linear.weight.float())
