"""The diffusion transformer of Predict2, for videos and images (spec/predict2-video2world.md 1)."""

from torch import Tensor

from cosmos_nemo.models.common.dit.model import DiT, NetworkModulation
from cosmos_nemo.models.common.rope import rope_angles


class Predict2DiT(DiT):
    """A noise level for each latent frame, angles of frame numbers whatever the frame rate, no tables."""

    def angles(self, grid_THW: tuple[int, int, int], *, fps: float) -> Tensor:
        return rope_angles(
            grid_THW,
            head_dim=self.shape.head_dim,
            ratios_THW=self.shape.rope_ratios_THW,
            fps=None,
            base_fps=self.shape.base_fps,
            dtype=self.rope_dtype,
        )

    def modulate(self, timesteps_BT: Tensor) -> NetworkModulation:
        """Once per step. `timesteps_BT` is t = sigma / (1 + sigma) of every latent frame.

        Worked out once for frames that follow each other with the same levels: given frames and made ones
        are two runs.
        """
        runs_RB, frames_R = timesteps_BT.T.unique_consecutive(dim=0, return_counts=True)
        return self.modulated_by(runs_RB, frames=tuple(frames_R.tolist()))
