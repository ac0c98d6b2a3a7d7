"""The diffusion decoder as a stage: from a video's discrete tokens to latents of the continuous tokenizer.

    with decoder as decode:
        latents = decode(ids_BTHW, seed=0)
    with tokenizer as tokenizer:
        windows_THWC = [tokenizer.decode(latent_BCTHW) for latent_BCTHW in latents]
    frames_THWC = assemble(windows_THWC, latent_frames=ids_BTHW.shape[1])

spec/predict1-autoregressive.md, 5.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import DiTShape, Family
from cosmos_nemo.checkpoint.aux_vars import read_generic_text
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.token_dit.model import TokenDiT
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.parallel.rank_zero import everywhere
from cosmos_nemo.sampling.denoiser import EdmDenoiser
from cosmos_nemo.sampling.noise import draw_noise
from cosmos_nemo.sampling.samplers import OnStep, Sampler, euler_sampler, res_sampler
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.decoder_windows import own_frames, split_windows
from cosmos_nemo.stages.guided_network import GuidedNetwork, filled_network

SIGMA_DATA, SIGMA_MIN = 0.5, 0.02
CELLS_PER_TOKEN = 2
"""Rows, and columns, of the latent that a token stands for."""
NUM_STEPS, GUIDANCE = 15, 1.8

DECODER_SAMPLERS: dict[str, Sampler] = {
    "EDM": euler_sampler(sigma_min=SIGMA_MIN),
    "RES": res_sampler("2ab", sigma_min=SIGMA_MIN),
}
"""EDM is Cosmos-Predict1's, RES that of Cosmos 1.0's release of the same network; 15 steps with both."""


class DiffusionDecoder(Stage):
    """Samples the latent that tokens stand for. Every rank calls it alike and gets the same latents."""

    name = "diffusion_decoder"

    def __init__(
        self,
        *,
        shape: DiTShape,
        checkpoint: Path,
        groups: Groups,
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,
        rope_dtype: torch.dtype = torch.float32,
        has_generic_text: bool = True,
        offload: bool = False,
        prefetches: bool = False,
    ) -> None:
        """has_generic_text: aux_vars.pt is read; not needed where every call brings a text."""
        super().__init__(device=device, offload=offload, prefetches=prefetches)
        assert shape.family is Family.TOKEN_DECODER
        self.shape, self.checkpoint = shape, checkpoint
        self.groups, self.backend = groups, backend
        self.dtype, self.rope_dtype = dtype, rope_dtype
        self.has_generic_text = has_generic_text
        self.generic_text_BLD: Tensor | None = None

    def check(self) -> None:
        """CheckpointError unless the text and a network of this shape are there; no weight is read."""
        if self.has_generic_text:
            read_generic_text(self.checkpoint, text_dim=self.shape.text_dim)
        network_rules(self.shape, open_network(self.checkpoint))

    def build(self) -> nn.Module:
        return everywhere(self._build, self.groups.replica)

    @torch.inference_mode()
    def __call__(
        self,
        ids_BTHW: Tensor,
        text_BLD: Tensor | None = None,
        *,
        seed: int,
        guidance: float = GUIDANCE,
        sampler: str = "EDM",
        num_steps: int = NUM_STEPS,
        on_step: OnStep | None = None,
    ) -> list[Tensor]:
        """Normalised latents [1, C, T, H, W], float32, one for each window of the video, each of its own
        frames alone (but of two at least, since a single one would be decoded as an image).

        ids: [1, T, H / 2, W / 2]. text: an embedding [1, L, D]; None is the generic one. The noise of a
        window depends on the seed and its number, not on how many there are. on_step counts the calls of all
        windows. ValueError for an id that there is not, and for a size beyond the network's.
        """
        network = self.module
        assert isinstance(network, TokenDiT), "enter the stage first"
        assert ids_BTHW.ndim == 4 and len(ids_BTHW) == 1, "one video at a time"
        text = self.generic_text_BLD if text_BLD is None else text_BLD
        assert text is not None, "a decoder without its generic text is called without any"
        _, T, rows, columns = ids_BTHW.shape
        orders = split_windows(T)
        latent_THW = (len(orders[0]), CELLS_PER_TOKEN * rows, CELLS_PER_TOKEN * columns)
        noise = draw_noise((len(orders), self.shape.latent_channels, *latent_THW), seed=seed)
        latents = []
        for number, order in enumerate(orders):
            denoiser = self._denoiser(network, ids_BTHW[:, order], text, latent_THW, guidance=guidance)
            sample = DECODER_SAMPLERS[sampler].sample(
                denoiser,
                noise[number : number + 1].to(self.device),
                num_steps=num_steps,
                on_step=None if on_step is None else partial(_of_window, on_step, number, len(orders)),
            )
            latents.append(sample[:, :, : max(own_frames(order), 2)] / SIGMA_DATA)
        return latents

    def _denoiser(
        self,
        network: TokenDiT,
        ids_BTHW: Tensor,
        text_BLD: Tensor,
        latent_THW: tuple[int, int, int],
        *,
        guidance: float,
    ) -> EdmDenoiser:
        """The unconditional branch has a text of zeros, and everywhere the token of id 0."""
        _, rows, columns = latent_THW
        predict = GuidedNetwork(
            network,
            groups=self.groups,
            guidance=guidance,
            text={"cond": text_BLD, "uncond": torch.zeros_like(text_BLD)},
            positions=network.positions(latent_THW, fps=self.shape.base_fps),
            told={
                "cond": network.embed_ids(ids_BTHW, (rows, columns)),
                "uncond": network.embed_ids(torch.zeros_like(ids_BTHW), (rows, columns)),
            },
        )
        return EdmDenoiser(lambda x_BCTHW, c_noise: predict(x_BCTHW, c_noise.reshape(1)), SIGMA_DATA)

    def _build(self) -> nn.Module:
        # The text first: it is the smaller, and was seen to be missing (predict1#111).
        if self.has_generic_text:
            self.generic_text_BLD = read_generic_text(self.checkpoint, text_dim=self.shape.text_dim)
        return filled_network(
            self.shape,
            checkpoint=open_network(self.checkpoint),
            backend=self.backend,
            pg_collection=self.groups.collection,
            device=self.device,
            dtype=self.dtype,
            rope_dtype=self.rope_dtype,
        )


def _of_window(on_step: OnStep, number: int, count: int, step: int, total: int) -> None:
    """Progress of one window told as that of all."""
    on_step(number * total + step, count * total)
