"""Tokens drawn by launches of a CUDA graph: the same as without, no waiting, nothing left behind."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.sampling.token_loop import _Steps, generate
from cosmos_nemo.sampling.tokens import TokenSampling, draw_uniforms
from tests.token_network import FakeTokenNetwork

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
# As many logits as the released networks have: sorting them takes other kernels than a few.
SHAPE = TokenShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=64000,
    latent_THW=(5, 6, 8),
)
PROMPT_LENGTH = 48
NUM_TOKENS = SHAPE.num_video_tokens - PROMPT_LENGTH
WAYS = (TokenSampling(), TokenSampling(0.0), TokenSampling(0.7, top_p=None, top_k=50))


def network(*, device: torch.device = GPU, dtype: torch.dtype = torch.float32) -> FakeTokenNetwork:
    return FakeTokenNetwork(SHAPE, device=device, dtype=dtype)


def prompts(batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SHAPE.vocab_size, (batch_size, PROMPT_LENGTH), generator=generator)


def made(of: FakeTokenNetwork, *, batch_size: int = 2, **changes: Any) -> Tensor:
    """In several buckets and blocks, unless `changes` say otherwise."""
    options = {"sampling": TokenSampling(), "bucket_size": 60, "block_size": 25} | changes
    return generate(
        of,
        prompts(batch_size).to(of.output.weight.device),
        num_tokens=NUM_TOKENS,
        seeds=range(batch_size),
        **options,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", WAYS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_launches_of_a_graph_give_the_tokens_of_calls(
    batch_size: int, sampling: TokenSampling, dtype: torch.dtype
) -> None:
    of = network(dtype=dtype)
    called = made(of, batch_size=batch_size, sampling=sampling, use_graphs=False)
    assert len(of.caches.pop().buckets) == NUM_TOKENS - 1
    launched = made(of, batch_size=batch_size, sampling=sampling)
    # Of each bucket one step is called and one captured.
    assert of.caches.pop().buckets == [60, 60, 120, 120, 180, 180, 240, 240]
    assert torch.equal(launched, called)


@pytest.mark.parametrize("changes", [{"bucket_size": 7}, {"bucket_size": 1}, {"block_size": 1}])
def test_buckets_and_blocks_of_other_sizes_give_the_same_tokens(changes: dict[str, int]) -> None:
    of = network()
    assert torch.equal(made(of, **changes), made(of))


def test_a_seed_draws_the_same_tokens_on_the_gpu_and_on_the_cpu() -> None:
    assert torch.equal(made(network()), made(network(device=torch.device("cpu"))))


def test_a_video_does_not_depend_on_its_neighbour() -> None:
    of, begun = network(), prompts(3).to(GPU)

    def drawn(rows: list[int]) -> Tensor:
        options = {"num_tokens": NUM_TOKENS, "sampling": TokenSampling(), "bucket_size": 60}
        return generate(of, begun[rows], seeds=rows, **options)

    assert torch.equal(drawn([0, 1])[0], drawn([0, 2])[0])


@torch.inference_mode()
def test_a_step_makes_the_host_wait_for_nothing() -> None:
    of = network()
    for sampling in WAYS:
        uniforms_NB = draw_uniforms([0, 1], NUM_TOKENS).to(GPU)
        steps = _Steps(
            of, start=PROMPT_LENGTH, sampling=sampling, uniforms_NB=uniforms_NB, text=None, agree=None
        )
        steps.prefill(prompts(2).to(GPU))
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps.decode(60)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_progress_is_told_in_order_and_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    made(network(), on_step=lambda done, total: told.append((done, total)))
    assert told == [(done, NUM_TOKENS) for done in (25, 50, 75, 100, 125, 150, 175, NUM_TOKENS)]


class Broken(FakeTokenNetwork):
    """Raises at its n-th call of decode; with graphs, every second of a bucket is a capture."""

    left = 2

    def decode(self, *args: Any, **options: Any) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise ValueError("broken")
        return super().decode(*args, **options)


class Spoiled(FakeTokenNetwork):
    """Its logits are NaN where the position is 100, in a graph too."""

    def decode(self, *args: Any, position: Tensor, **options: Any) -> Tensor:
        logits_BV = super().decode(*args, position=position, **options)
        return torch.where(position == 100, torch.nan, logits_BV)


def test_logits_that_are_nan_inside_a_graph_end_the_run_and_name_the_place() -> None:
    with pytest.raises(FloatingPointError, match="after 53 drawn tokens of video 0"):
        made(Spoiled(SHAPE, device=GPU))


@pytest.mark.parametrize("kind", [Broken, Spoiled])
def test_a_run_that_fails_leaves_no_memory_and_the_next_one_is_right(kind: type[FakeTokenNetwork]) -> None:
    of = network()
    expected = made(of)
    of.caches.clear()
    failing = kind(SHAPE, device=GPU)
    gc.collect()
    before = torch.cuda.memory_allocated(GPU)
    with pytest.raises((ValueError, FloatingPointError)):
        made(failing)
    failing.caches.clear()
    gc.collect()
    assert torch.cuda.memory_allocated(GPU) <= before
    assert torch.equal(made(of), expected)
