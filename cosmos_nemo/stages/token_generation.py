"""The autoregressive network as a stage: from the tokens of a video's first frames to those of all.

B videos are made together; their tokens are in a grid of T latent frames, H rows and W columns.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.memory import token_generation_memory
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.models.token_transformer.model import build_token_transformer
from cosmos_nemo.parallel.groups import Groups
from cosmos_nemo.parallel.rank_zero import everywhere
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.sampling.token_loop import generate
from cosmos_nemo.sampling.token_report import NotFiniteLogits
from cosmos_nemo.sampling.tokens import TokenSampling
from cosmos_nemo.stages.base import Stage


class PromptTokensError(ValueError):
    """Tokens, seeds or a text from which the network cannot go on."""


class LogitsError(ValueError):
    """Logits that are NaN or infinite, of which no token can be drawn; the message says what to do."""


class TokenGeneration(Stage):
    """Goes on from the tokens of a video's first frames.

    Every rank of the replica calls it with the same arguments and gets the same tokens.
    """

    name: ClassVar[str] = "token_generation"

    def __init__(
        self,
        *,
        shape: TokenShape,
        checkpoint: Path,
        groups: Groups,
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,
        use_graphs: bool | None = None,
        offload: bool = False,
        prefetches: bool = False,
    ) -> None:
        """use_graphs: each step is one launch of a CUDA graph; None is wherever there is a GPU."""
        super().__init__(device=device, offload=offload, prefetches=prefetches)
        self.shape, self.checkpoint = shape, checkpoint
        self.groups, self.backend = groups, backend
        self.dtype, self.use_graphs = dtype, use_graphs

    def build(self) -> nn.Module:
        return everywhere(self._build, self.groups.replica)

    def work_bytes(self, batch_size: int) -> int:
        """What drawing the tokens of so many videos together takes of the device beside the weights, about:
        keys, values, logits and the activations of the longest prompt."""
        tp = self.groups.collection.tp.size()
        return token_generation_memory(self.shape, tensor_parallel=tp, batch_size=batch_size).work

    @torch.inference_mode()
    def __call__(
        self,
        given_BTHW: Tensor,
        *,
        seeds: Sequence[int],
        sampling: TokenSampling | None = None,
        text_BLD: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """All tokens of each video, int64 [B, T, H, W] on the CPU; it begins with the given ones.

        given_BTHW: whole numbers, those of the first latent frames. seeds: one for each video, 0 to 2^32 - 1.
        sampling: None is as the released scripts draw. text_BLD: for a network that takes text, and only for
        it. on_step: see token_loop.generate. PromptTokensError before anything is computed, if the network
        cannot go on from such tokens; NotFiniteLogits if its logits are not finite.
        """
        shape, (frames, rows, columns) = self.shape, self.shape.latent_THW
        given_BS = check_given(given_BTHW, shape).flatten(1)
        check_company(shape, batch_size=len(given_BS), seeds=seeds, text_BLD=text_BLD)
        network, replica = self.module, self.groups.replica
        assert network is not None, "enter the stage first"
        drawn_BN = generate(
            network,  # type: ignore[arg-type]
            with_beginning(given_BS, shape).to(self.device),
            num_tokens=shape.num_video_tokens - given_BS.shape[1],
            sampling=sampling or TokenSampling(),
            seeds=seeds,
            text=None if text_BLD is None else network.encode_text(text_BLD.to(self.device)),  # type: ignore[operator]
            agree=partial(dist.broadcast, group=replica, group_src=0) if replica.size() > 1 else None,
            on_step=on_step,
            use_graphs=self.use_graphs,
        )
        return torch.cat([given_BS, drawn_BN], dim=1).view(-1, frames, rows, columns)

    def sentence(self, error: NotFiniteLogits, *, num_given: int) -> str:
        """What went wrong with a video that began with `num_given` tokens, and what to do about it."""
        shape = self.shape
        position = num_given + error.number
        frame, in_frame = divmod(position, shape.latent_THW[1] * shape.latent_THW[2])
        row, column = divmod(in_frame, shape.latent_THW[2])
        return (
            f"the network's logits for token {position + 1:,} of {shape.num_video_tokens:,} (latent frame "
            f"{frame}, row {row}, column {column}, from 0) are NaN or infinite in "
            f"{str(self.dtype).removeprefix('torch.')}. If a warning above names one of its tensors, or if "
            f"they were converted to a narrower type, the weights {self.checkpoint} are damaged: download or "
            "convert them again." + (" Otherwise try --backend torch." if self.backend.name == "te" else "")
        )

    def _build(self) -> nn.Module:
        checkpoint, collection = open_checkpoint(self.checkpoint), self.groups.collection
        rules = token_rules(self.shape, checkpoint, tensor_parallel_size=collection.tp.size())
        network = build_token_transformer(
            self.shape,
            backend=self.backend,
            pg_collection=collection,
            device=self.device,
            dtype=self.dtype,
        )
        load_into(
            network,
            checkpoint=checkpoint,
            rules=rules,
            tensor_parallel_rank=collection.tp.rank(),
            tensor_parallel_size=collection.tp.size(),
        )
        return network


def check_given(given_BTHW: Tensor, shape: TokenShape) -> Tensor:
    """The tokens as int64 on the CPU. PromptTokensError if they do not begin a video of that shape."""
    frames, rows, columns = shape.latent_THW
    sizes = tuple(given_BTHW.shape)
    fits = len(sizes) == 4 and sizes[0] > 0 and 1 <= sizes[1] < frames and sizes[2:] == (rows, columns)
    if not fits:
        raise PromptTokensError(
            f"Tokens of shape {sizes} do not begin a video of {frames} latent frames: "
            f"pass [videos, frames, {rows}, {columns}], with 1 to {frames - 1} frames."
        )
    if given_BTHW.is_floating_point() or given_BTHW.is_complex() or given_BTHW.dtype == torch.bool:
        raise PromptTokensError(
            f"Tokens are whole numbers, not {given_BTHW.dtype}: pass the ids of codes, not the codes."
        )
    given_BTHW = given_BTHW.to(device="cpu", dtype=torch.int64)
    least, most = int(given_BTHW.min()), int(given_BTHW.max())
    if least < 0 or most >= shape.vocab_size:
        raise PromptTokensError(
            f"Token {least if least < 0 else most} is not one of the network's, which are 0 to "
            f"{shape.vocab_size - 1}. Were these made by another tokenizer?"
        )
    return given_BTHW


def check_company(
    shape: TokenShape, *, batch_size: int, seeds: Sequence[int], text_BLD: Tensor | None
) -> None:
    """PromptTokensError unless there is a seed and, for a network that takes it, a text for each video."""
    if len(seeds) != batch_size:
        raise PromptTokensError(f"{len(seeds)} seeds for {batch_size} videos: pass one for each.")
    if text_BLD is None:
        if shape.takes_text:
            raise PromptTokensError("This network goes on as a text says: pass the text's embedding.")
        return
    if not shape.takes_text:
        raise PromptTokensError("A text has no effect on this network: leave it out.")
    expected = (batch_size, shape.text_length, shape.text_dim)
    if tuple(text_BLD.shape) != expected:
        raise PromptTokensError(f"A text of shape {tuple(text_BLD.shape)} does not fit: pass {expected}.")


def with_beginning(given_BS: Tensor, shape: TokenShape) -> Tensor:
    """A network that takes text begins a video with a token of its own.

    spec/predict1-autoregressive.md 1.3.
    """
    if not shape.takes_text:
        return given_BS
    return torch.cat([given_BS.new_full((len(given_BS), 1), shape.vocab_size), given_BS], dim=1)
