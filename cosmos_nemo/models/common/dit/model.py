"""What the diffusion transformers have in common: all but their positions and their noise levels.

What a network call needs is worked out as seldom as it changes: `positions` and `encode_text` once per video,
`modulate` once per step, `forward` once per step and guidance branch.
"""

from collections.abc import Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, cast

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.models.common.dit.embeddings import (
    FinalLayer,
    PatchEmbed,
    TimestepEmbedding,
    Timesteps,
    patchify,
    unpatchify,
)
from cosmos_nemo.models.common.dit.layers import DiTLayer, KeyValue, LayerModulation, Modulation, Rope
from cosmos_nemo.models.common.fused import Runs, runs_of
from cosmos_nemo.models.common.sharded import stacked_layers, without_extra_states
from cosmos_nemo.parallel.context import gather_tokens, local_length, split_tokens


class Positions(NamedTuple):
    """Where the tokens of one video lie: rotary angles and, if learned, table of this rank's tokens."""

    grid_THW: tuple[int, int, int]
    rope: Rope
    learned_s1D: Tensor | None

    @property
    def num_tokens(self) -> int:
        t, h, w = self.grid_THW
        return t * h * w


class NetworkModulation(NamedTuple):
    layers: list[LayerModulation]
    final: Modulation
    frames: tuple[int, ...] | None = None
    """How many latent frames each row of the modulation is for; None where it has no rows."""


class Decoder(MegatronModule):
    """The layers, under the name the checkpoint has for them, which saves them stacked."""

    def __init__(self, config: TransformerConfig, layers: list[DiTLayer]) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(layers)

    def __iter__(self) -> Iterator[DiTLayer]:
        return iter(cast(list[DiTLayer], self.layers))

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The layers stacked; see common/sharded.py."""
        return stacked_layers(self, prefix=prefix, sharded_offsets=sharded_offsets, metadata=metadata)


class DiT(MegatronModule):
    """Predicts the raw output F of a preconditioned network; built by models.build.build_network."""

    def __init__(
        self,
        shape: DiTShape,
        *,
        config: TransformerConfig,
        layer: ModuleSpec,
        rms_norm: type[nn.Module],
        pg_collection: ProcessGroupCollection,
        rope_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`rope_dtype` bfloat16 rounds the angles as NVIDIA's scripts did (spec 0.2); float32 is exact."""
        super().__init__(config)
        self.shape, self.cp, self.rope_dtype = shape, pg_collection.cp, rope_dtype
        width, dtype, patch = shape.hidden_size, config.params_dtype, shape.patch_size
        self.x_embedder = PatchEmbed(shape.patch_dim, width, dtype=dtype)
        self.t_embedder = nn.Sequential(Timesteps(width), TimestepEmbedding(width, dtype=dtype))
        self.affline_norm = rms_norm(hidden_size=width, eps=1e-6, dtype=dtype)
        self.decoder = Decoder(
            config,
            [
                build_module(layer, config=config, pg_collection=pg_collection)
                for _ in range(shape.num_layers)
            ],
        )
        self.final_layer = FinalLayer(
            width, shape.latent_channels * patch**2, shape.adaln_lora_dim, dtype=dtype
        )

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What Megatron's dist_checkpointing loads from a NeMo checkpoint; see common/sharded.py."""
        return without_extra_states(super().sharded_state_dict(prefix, sharded_offsets, metadata))

    @property
    def device(self) -> torch.device:
        return self.final_layer.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.final_layer.linear.weight.dtype

    def positions(self, latent_THW: tuple[int, int, int], *, fps: float) -> Positions:
        """Once per video. `latent_THW`: latent frames, rows and columns. ValueError beyond the model's."""
        shape = self.shape
        limits = (shape.max_latent_frames, shape.max_latent_height, shape.max_latent_width)
        if any(size > limit for size, limit in zip(latent_THW, limits, strict=True)):
            raise ValueError(
                f"A latent of {latent_THW} frames, rows, columns is beyond the model's {limits}."
            )
        t, h, w = latent_THW
        grid = (t, h // shape.patch_size, w // shape.patch_size)
        angles = split_tokens(self.angles(grid, fps=fps).to(self.device), self.cp)
        return Positions(grid, Rope(angles.cos(), angles.sin()), self.learned_positions(grid))

    def angles(self, grid_THW: tuple[int, int, int], *, fps: float) -> Tensor:
        """Rotary angles of all tokens, [S, 1, 1, K] float32 on the CPU."""
        raise NotImplementedError(f"{type(self).__name__}.angles")

    def learned_positions(self, grid_THW: tuple[int, int, int]) -> Tensor | None:
        """What is added to this rank's tokens before every layer, [s, 1, D]."""
        return None

    def modulate(self, timesteps: Tensor) -> NetworkModulation:
        """Once per step: how the noise levels bend every layer."""
        raise NotImplementedError(f"{type(self).__name__}.modulate")

    def encode_text(self, text_BLD: Tensor) -> list[KeyValue]:
        """Once per video and guidance branch: every layer's keys and values of the text embedding."""
        text_LBD = text_BLD.to(self.device, self.dtype).transpose(0, 1).contiguous()
        return [layer.cross_attention.encode_text(text_LBD) for layer in self.decoder]

    def modulated_by(
        self, timesteps_B: Tensor, *, frames: tuple[int, ...] | None = None
    ) -> NetworkModulation:
        """From c_noise [B]; or [R, B], a row for each run of so many latent frames."""
        timestep, lora = self.embed_timestep(timesteps_B.to(self.device))
        return NetworkModulation(
            [layer.adaLN(timestep, lora) for layer in self.decoder],
            self.final_layer.modulation(timestep, lora),
            frames,
        )

    def embed_timestep(self, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        """The normed sinusoid [B, D], which every layer modulates by, and the shared term [B, 3 D]."""
        sinusoids, embed = self.t_embedder
        sinusoid = sinusoids(timesteps_B).to(self.dtype)
        return self.affline_norm(sinusoid), embed(sinusoid)

    def embed_patches(
        self,
        x_BCTHW: Tensor,
        *,
        padding_mask_B1HW: Tensor | None = None,
        given_mask_B1THW: Tensor | None = None,
        told_BCTHW: Tensor | None = None,
    ) -> Tensor:
        """This rank's tokens, [s, B, D].

        Channels: latent, what the network is told of every cell, given mask (each if the network has it),
        padding.
        """
        b, _, t, h, w = x_BCTHW.shape
        assert (given_mask_B1THW is not None) == self.shape.takes_given_mask
        assert (told_BCTHW is not None) == (self.shape.token_dim > 0)
        channels = [x_BCTHW]
        if told_BCTHW is not None:
            channels.append(told_BCTHW.to(x_BCTHW))
        if given_mask_B1THW is not None:
            channels.append(given_mask_B1THW.to(x_BCTHW))
        if padding_mask_B1HW is None:
            channels.append(x_BCTHW.new_zeros(b, 1, t, h, w))
        else:
            resized = F.interpolate(padding_mask_B1HW.to(x_BCTHW), size=(h, w), mode="nearest")
            channels.append(resized[:, :, None].expand(-1, -1, t, -1, -1))
        patches = patchify(torch.cat(channels, dim=1), self.shape.patch_size)
        return self.x_embedder(split_tokens(patches, self.cp))

    def forward(
        self,
        x_BCTHW: Tensor,
        *,
        modulation: NetworkModulation,
        text: list[KeyValue],
        positions: Positions,
        padding_mask_B1HW: Tensor | None = None,
        given_mask_B1THW: Tensor | None = None,
        told_BCTHW: Tensor | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """F of the whole latent, [B, C, T, H, W] float32, on every rank.

        x is the whole noisy latent times c_in, the same on all ranks; the padding mask is in pixels, 1 where
        there is no picture; the given mask is 1 on latent frames the network is told; `told` are channels
        of the latent's size, the token embedding of TokenDiT. With `recompute` a layer keeps only its input
        for the backward pass and is computed a second time there.
        """
        runs = self.runs_of(modulation, positions)
        hidden = self.embed_patches(
            x_BCTHW.to(self.dtype),
            padding_mask_B1HW=padding_mask_B1HW,
            given_mask_B1THW=given_mask_B1THW,
            told_BCTHW=told_BCTHW,
        )
        for layer, arguments in self.layer_calls(modulation, text, positions, runs):
            run = partial(_run_again, layer) if recompute else layer
            hidden = run(hidden, **arguments)
        tokens = self.final_layer(hidden, modulation.final, runs)
        tokens = gather_tokens(tokens, self.cp, positions.num_tokens)
        return unpatchify(tokens, grid_THW=positions.grid_THW, patch=self.shape.patch_size)

    def layer_calls(
        self,
        modulation: NetworkModulation,
        text: list[KeyValue],
        positions: Positions,
        runs: Runs | None,
    ) -> Iterator[tuple[DiTLayer, dict[str, Any]]]:
        """Each layer and what it is called with beside the tokens."""
        shared = {
            "rope": positions.rope,
            "positions_s1D": positions.learned_s1D,
            "num_tokens": positions.num_tokens,
            "runs": runs,
        }
        for layer, by, key_value in zip(self.decoder, modulation.layers, text, strict=True):
            yield layer, {"modulation": by, "text": key_value, **shared}

    def runs_of(self, modulation: NetworkModulation, positions: Positions) -> Runs | None:
        """Which of this rank's tokens each row of the modulation is for; padding goes with the last."""
        frames = modulation.frames
        if frames is None:
            return None
        t, h, w = positions.grid_THW
        assert sum(frames) == t, f"noise levels of {sum(frames)} frames for {t}"
        length = local_length(t * h * w, self.cp)
        first = self.cp.rank() * length
        ends = [min(max(end * h * w - first, 0), length) for end in accumulate(frames)]
        return runs_of([end - start for start, end in pairwise([0, *ends[:-1], length])], self.device)


def _run_again(layer: DiTLayer, hidden_sBD: Tensor, **arguments: Any) -> Tensor:
    """The layer, computed again in the backward pass; there is no dropout whose state would matter."""
    run: Tensor = checkpoint(layer, hidden_sBD, use_reentrant=False, preserve_rng_state=False, **arguments)
    return run
