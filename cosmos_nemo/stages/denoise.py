"""The diffusion network as a stage: from noise and text to a latent, over all ranks of the plan."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import Family, ModelCard
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.parallel.rank_zero import everywhere
from cosmos_nemo.request import Text2WorldRequest, latent_shape
from cosmos_nemo.sampling.denoiser import Denoise as Denoiser
from cosmos_nemo.sampling.denoiser import EdmDenoiser
from cosmos_nemo.sampling.given import (
    Corruption,
    DrawnCorruption,
    FixedCorruption,
    GivenDenoiser,
    GivenFrames,
)
from cosmos_nemo.sampling.noise import draw_noise
from cosmos_nemo.sampling.rectified_flow import CleanFrames, FlowDenoiser
from cosmos_nemo.sampling.samplers import SAMPLERS, OnStep
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.guided_network import GuidedNetwork, filled_network


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Latent frames that a sample must contain."""

    latent_BCTHW: Tensor
    """Normalised, as a tokenizer makes it; the frames one after the other."""
    places: tuple[int, ...]
    """Where in the sample they stand: one latent frame number for each."""
    noise_level: float = 0.001
    """Sigma of the noise under which the network sees them; Predict2's sees them clean."""
    draws_noise: bool = False
    """Other noise, of a level as in training, for every call of the denoiser, as the WorldInterpolator was
    released. noise_level has no effect then."""


class Denoise(Stage):
    """Samples a latent. Every rank calls it with the same arguments and gets the same latent."""

    name = "denoise"

    def __init__(
        self,
        *,
        card: ModelCard,
        checkpoint: Path,
        groups: Groups,
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,
        rope_dtype: torch.dtype = torch.float32,
        averaged: bool = False,
        offload: bool = False,
        prefetches: bool = False,
    ) -> None:
        """averaged: of a file that holds them, the moving average of the weights."""
        super().__init__(device=device, offload=offload, prefetches=prefetches)
        self.card, self.checkpoint = card, checkpoint
        self.groups, self.backend = groups, backend
        self.dtype, self.rope_dtype, self.averaged = dtype, rope_dtype, averaged

    def build(self) -> nn.Module:
        return everywhere(self._build, self.groups.replica)

    @torch.inference_mode()
    def __call__(
        self,
        request: Text2WorldRequest,
        prompt_BLD: Tensor,
        negative_BLD: Tensor,
        *,
        condition: Condition | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The normalised latent [1, C, T, H, W], float32. Text embeddings: [1, L, D], zeros for "no text".

        condition: for a network that was trained to go on from given frames, and only for it.
        """
        network = self.module
        assert isinstance(network, DiT)
        shape = latent_shape(request, self.card)
        noise = draw_noise(shape, seed=request.seed).to(self.device)
        predict = GuidedNetwork(
            network,
            groups=self.groups,
            guidance=request.guidance,
            text={"cond": prompt_BLD, "uncond": negative_BLD},
            positions=network.positions(shape[2:], fps=request.fps),
        )
        denoiser = self._denoiser(predict, condition, noise, seed=request.seed)
        sampler = SAMPLERS[request.sampler]
        sample = sampler.sample(denoiser, noise, num_steps=request.num_steps, on_step=on_step)
        return sample / self.card.sigma_data

    def _denoiser(
        self, predict: GuidedNetwork, condition: Condition | None, noise: Tensor, *, seed: int
    ) -> Denoiser:
        """Where the families differ: how the network's answer is scaled, and how it is told given frames."""
        sigma_data = self.card.sigma_data
        given = None if condition is None else _placed(condition, noise, sigma_data)
        if self.card.network.family is Family.PREDICT2:
            clean = None if given is None else CleanFrames(*given)
            predict.frames = clean
            return FlowDenoiser(lambda x_BCTHW, timesteps_T: predict(x_BCTHW, timesteps_T[None]), clean)
        denoiser = EdmDenoiser(lambda x_BCTHW, c_noise: predict(x_BCTHW, c_noise.reshape(1)), sigma_data)
        if condition is None or given is None:
            return denoiser
        frames = GivenFrames(*given, _corruption(condition, noise, seed=seed))
        predict.frames = frames
        return GivenDenoiser(denoiser, frames, sigma_data)

    def _build(self) -> DiT:
        return filled_network(
            self.card.network,
            checkpoint=open_network(self.checkpoint, averaged=self.averaged),
            backend=self.backend,
            pg_collection=self.groups.collection,
            device=self.device,
            dtype=self.dtype,
            rope_dtype=self.rope_dtype,
        )


def _placed(condition: Condition, noise: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """The given frames at their places in a latent of the sample's shape and units, and which those are."""
    places = list(condition.places)
    latent = torch.zeros_like(noise)
    latent[:, :, places] = sigma_data * condition.latent_BCTHW.to(noise)
    is_given_T = torch.zeros(noise.shape[2], dtype=torch.bool, device=noise.device)
    is_given_T[places] = True
    return latent, is_given_T


def _corruption(condition: Condition, noise: Tensor, *, seed: int) -> Corruption:
    """With the noise that the sample itself starts from, as upstream, unless it is drawn for every call."""
    if condition.draws_noise:
        return DrawnCorruption(noise.shape, torch.Generator().manual_seed(seed))
    return FixedCorruption(noise, condition.noise_level)
