"""The diffusion transformer of Cosmos 1.0 and Predict1 (spec/predict1-diffusion.md 1)."""

from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.models.common.dit.model import DiT, NetworkModulation
from cosmos_nemo.models.common.rope import rope_angles
from cosmos_nemo.models.cosmos1_dit.embeddings import LearnedPositions
from cosmos_nemo.parallel.context import local_length


class SingleLevelDiT(DiT):
    """One noise level for all frames, and angles that follow the frame rate."""

    def angles(self, grid_THW: tuple[int, int, int], *, fps: float) -> Tensor:
        return rope_angles(
            grid_THW,
            head_dim=self.shape.head_dim,
            ratios_THW=self.shape.rope_ratios_THW,
            fps=fps,
            base_fps=self.shape.base_fps,
            dtype=self.rope_dtype,
        )

    def modulate(self, timesteps_B: Tensor) -> NetworkModulation:
        """Once per step. `timesteps_B` is c_noise = ln(sigma) / 4."""
        return self.modulated_by(timesteps_B)


class Cosmos1DiT(SingleLevelDiT):
    """With position tables in every layer."""

    def __init__(self, shape: DiTShape, **parts: Any) -> None:
        """parts: as of DiT."""
        super().__init__(shape, **parts)
        patch = shape.patch_size
        self.extra_pos_embedder = LearnedPositions(
            (shape.max_latent_frames, shape.max_latent_height // patch, shape.max_latent_width // patch),
            shape.hidden_size,
            dtype=self.config.params_dtype,
        )

    def learned_positions(self, grid_THW: tuple[int, int, int]) -> Tensor:
        learned: Tensor = self.extra_pos_embedder(self._places(grid_THW))
        return learned

    def _places(self, grid_THW: tuple[int, int, int]) -> Tensor:
        """Places (t, h, w) of this rank's tokens, [s, 3]; padding repeats the last one."""
        t, h, w = grid_THW
        length = local_length(t * h * w, self.cp)
        token = torch.arange(length, device=self.device) + self.cp.rank() * length
        token = token.clamp(max=t * h * w - 1)
        return torch.stack([token // (h * w), token // w % h, token % w], dim=-1)
