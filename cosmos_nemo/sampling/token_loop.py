"""The loop that makes a video's tokens: the prompt at once, and then one token after the other.

B videos are made together, S tokens of prompt each, N tokens drawn for each, V tokens in the vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Protocol

import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.sampling.samplers import OnStep
from cosmos_nemo.sampling.token_replay import CallByCall, Replay
from cosmos_nemo.sampling.token_report import NOT_FINITE, TokenReport
from cosmos_nemo.sampling.tokens import TokenSampling, draw_by_uniforms, draw_uniforms

Agree = Callable[[Tensor], Any]
"""Gives every rank, in place, the first rank's value of a small tensor. May be part of a CUDA graph."""

_BUCKET = 1024
"""A step attends to so many tokens, or a multiple: fewer make more graphs, more make each step slower."""
_BLOCK = 128
"""Tokens between two looks at what has been drawn: half a second or so of a released model."""


class TokenNetwork(Protocol):
    """An autoregressive transformer of video tokens, as far as the loop knows it.

    Text is what the network's own `encode_text` makes of it. A cache holds the keys and values of B videos.
    """

    shape: TokenShape

    def new_cache(self, batch_size: int) -> Any: ...

    def prefill(self, tokens_BS: Tensor, cache: Any, *, text: Any = None) -> Tensor:
        """Puts the tokens into an empty cache; logits [B, V] of the one that follows them."""
        ...

    def decode(
        self, tokens_B1: Tensor, cache: Any, *, position: Tensor, bucket: int, text: Any = None
    ) -> Tensor:
        """Puts a token at `position`, int64 without axes on the device; logits [B, V] of the one after it.

        The token attends to those at 0 to `position`, all of which are below `bucket`.
        """
        ...


@torch.inference_mode()
def generate(
    network: TokenNetwork,
    prompt_BS: Tensor,
    *,
    num_tokens: int,
    sampling: TokenSampling,
    seeds: Sequence[int],
    text: Any = None,
    agree: Agree | None = None,
    on_step: OnStep | None = None,
    use_graphs: bool | None = None,
    bucket_size: int = _BUCKET,
    block_size: int = _BLOCK,
) -> Tensor:
    """The `num_tokens` tokens that follow each prompt, int64 [B, N] on the CPU. No token ends a video early.

    prompt_BS: int64, on the network's device. seeds: one for each video, whose tokens depend on it, on the
    prompt and on nothing else, as far as the network's logits do not: matrix products of another batch size
    may round otherwise. agree: for a network over several ranks, all of which call this; their logits are
    the same, but it takes no more than one kernel that adds up in another order for ranks to go on with
    different tokens, so the first rank decides. on_step: called with the tokens drawn so far of each video
    and their number in all, after every `block_size` of them and at the end.
    use_graphs: None is on a GPU; a step is then one launch of a CUDA graph.
    NotFiniteLogits, up to two blocks late, if a logit is NaN or infinite.
    """
    device, (batch_size, prompt_length) = prompt_BS.device, prompt_BS.shape
    max_length = network.shape.max_length
    assert len(seeds) == batch_size and 1 <= num_tokens <= max_length - prompt_length
    steps = _Steps(
        network,
        start=prompt_length,
        sampling=sampling,
        uniforms_NB=draw_uniforms(seeds, num_tokens).to(device),
        text=text,
        agree=agree,
    )
    report = TokenReport(steps.drawn_NB, on_step)
    replayed = device.type == "cuda" if use_graphs is None else use_graphs
    steps.prefill(prompt_BS)
    with closing(Replay(steps.decode, device) if replayed else CallByCall(steps.decode)) as run:
        for done in range(1, num_tokens):
            if done % block_size == 0:
                report.block(done)
            bucket = ((prompt_length + done - 1) // bucket_size + 1) * bucket_size
            run(min(bucket, max_length))
        report.block(num_tokens)
        return report.finish()


class _Steps:
    """The network, and the tensors that a step leaves changed, in their places, for the step after it."""

    def __init__(
        self,
        network: TokenNetwork,
        *,
        start: int,
        sampling: TokenSampling,
        uniforms_NB: Tensor,
        text: Any,
        agree: Agree | None,
    ) -> None:
        """start: position of the first token that is drawn."""
        self._network, self._sampling, self._text, self._agree = network, sampling, text, agree
        self._uniforms_NB = uniforms_NB
        device, batch_size = uniforms_NB.device, uniforms_NB.shape[1]
        self._cache = network.new_cache(batch_size)
        self._token_B1 = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        self._position = torch.tensor(start, device=device)
        self._number_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.drawn_NB = torch.zeros(uniforms_NB.shape, dtype=torch.int64, device=device)

    def prefill(self, prompt_BS: Tensor) -> None:
        """The prompt, and the first token after it."""
        logits_BV = self._network.prefill(prompt_BS, self._cache, text=self._text)
        assert logits_BV.shape == (len(prompt_BS), self._network.shape.vocab_size)
        self._choose(logits_BV)

    def decode(self, bucket: int) -> None:
        """The last token that was drawn, and the one after it."""
        self._choose(
            self._network.decode(
                self._token_B1, self._cache, position=self._position, bucket=bucket, text=self._text
            )
        )
        self._position += 1

    def _choose(self, logits_BV: Tensor) -> None:
        uniforms_B = self._uniforms_NB.index_select(0, self._number_1)[0]
        tokens_B = draw_by_uniforms(logits_BV, self._sampling, uniforms_B)
        # The largest magnitude is NaN if one is; much less to launch than a test of each.
        is_finite_B = torch.linalg.vector_norm(logits_BV, torch.inf, dim=-1) < torch.inf
        drawn_B = tokens_B.masked_fill(~is_finite_B, NOT_FINITE)
        if self._agree is not None:
            self._agree(drawn_B)
        self.drawn_NB.index_copy_(0, self._number_1, drawn_B[None])
        self._token_B1.copy_(drawn_B.clamp(min=0)[:, None])
        self._number_1 += 1
