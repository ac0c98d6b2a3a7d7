import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.sampling.token_loop import generate
from cosmos_nemo.sampling.token_report import NotFiniteLogits
from cosmos_nemo.sampling.tokens import TokenSampling, draw_by_uniforms, draw_uniforms
from tests.token_network import TINY_TOKENS, FakeCache, FakeTokenNetwork

GREEDY, SAMPLED = TokenSampling(0.0), TokenSampling(1.0, top_p=0.9)
SEEDS, PROMPT_LENGTH = (7, 8, 9), 15
NUM_TOKENS = TINY_TOKENS.num_video_tokens - PROMPT_LENGTH


def prompts(*, batch_size: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY_TOKENS.vocab_size, (batch_size, PROMPT_LENGTH), generator=generator)


def made(network: FakeTokenNetwork | None = None, prompt_BS: Tensor | None = None, **changes: Any) -> Tensor:
    options = {"num_tokens": NUM_TOKENS, "sampling": SAMPLED, "seeds": SEEDS} | changes
    return generate(network or FakeTokenNetwork(), prompts() if prompt_BS is None else prompt_BS, **options)


def without_cache(sampling: TokenSampling, *, text: Tensor | None = None) -> Tensor:
    """The whole network again for every token."""
    network, tokens, uniforms_NB = FakeTokenNetwork(), prompts(), draw_uniforms(SEEDS, NUM_TOKENS)
    for uniforms_B in uniforms_NB:
        drawn = draw_by_uniforms(network(tokens, text=text)[:, -1], sampling, uniforms_B)
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    return tokens[:, PROMPT_LENGTH:]


class Broken(FakeTokenNetwork):
    """Does something bad, once, at its n-th decode."""

    def __init__(self, at: int, *, video: int | None = None) -> None:
        super().__init__()
        self.left, self.video = at, video

    def decode(self, *args: Any, **options: Any) -> Tensor:
        logits_BV = super().decode(*args, **options)
        self.left -= 1
        if self.left == 0 and self.video is None:
            raise RuntimeError("the device is gone")
        if self.left == 0:
            logits_BV[self.video, 3] = float("nan")
        return logits_BV


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, TokenSampling(0.8, top_p=None, top_k=7)])
def test_the_cache_gives_the_tokens_of_the_whole_network(sampling: TokenSampling) -> None:
    tokens = made(sampling=sampling)
    assert tokens.dtype == torch.int64 and tokens.shape == (3, NUM_TOKENS)
    assert torch.equal(tokens, without_cache(sampling))


def test_text_reaches_the_prompt_and_every_step() -> None:
    text = torch.linspace(-2, 2, TINY_TOKENS.hidden_size)
    tokens = made(text=text)
    assert torch.equal(tokens, without_cache(SAMPLED, text=text))
    assert not torch.equal(tokens, made())


def test_another_seed_draws_other_tokens_but_not_at_temperature_0() -> None:
    other = (7, 8, 10)
    assert torch.equal(made(), made())
    tokens = made(seeds=other)
    assert torch.equal(tokens[:2], made()[:2]) and not torch.equal(tokens[2], made()[2])
    assert torch.equal(made(sampling=GREEDY), made(sampling=GREEDY, seeds=other))


def test_a_videos_tokens_do_not_depend_on_its_neighbours_or_their_number() -> None:
    together = made()
    order = [2, 0, 1]
    assert torch.equal(made(prompt_BS=prompts()[order], seeds=[SEEDS[i] for i in order]), together[order])
    strangers = torch.cat([prompts(seed=5)[:1], prompts()[1:2], prompts(seed=6)[:1]])
    assert torch.equal(made(prompt_BS=strangers, seeds=(1, SEEDS[1], 2))[1], together[1])
    for video in range(3):
        alone = made(prompt_BS=prompts()[video : video + 1], seeds=SEEDS[video : video + 1])
        assert torch.equal(alone[0], together[video])


def test_the_first_tokens_do_not_depend_on_how_many_follow() -> None:
    assert torch.equal(made(num_tokens=20), made()[:, :20])


@pytest.mark.parametrize("block_size", [1, 7, NUM_TOKENS, 1000])
@pytest.mark.parametrize("bucket_size", [1, 16, 1000])
def test_blocks_and_buckets_of_other_sizes_give_the_same_tokens(block_size: int, bucket_size: int) -> None:
    assert torch.equal(made(block_size=block_size, bucket_size=bucket_size), made())


def test_a_bucket_is_the_next_multiple_above_the_position_and_ends_with_the_cache() -> None:
    network = FakeTokenNetwork()
    made(network, bucket_size=16)
    assert len(network.caches) == 1
    assert network.caches[0].buckets == [16] + [32] * 16 + [48] * 16 + [60] * 11


def test_one_token_needs_no_step_after_the_prompt() -> None:
    network = FakeTokenNetwork()
    assert torch.equal(made(network, num_tokens=1), made()[:, :1])
    assert network.caches[0].buckets == []


@pytest.mark.parametrize(
    ("block_size", "calls"), [(16, [16, 32, 45]), (15, [15, 30, 45]), (44, [44, 45]), (100, [45])]
)
def test_progress_is_told_after_each_block_and_at_the_end(block_size: int, calls: list[int]) -> None:
    told: list[tuple[int, int]] = []
    made(on_step=lambda done, total: told.append((done, total)), block_size=block_size)
    assert told == [(done, NUM_TOKENS) for done in calls]


def test_logits_that_are_nan_end_the_run_at_the_next_look_and_name_the_place() -> None:
    told: list[int] = []
    with pytest.raises(FloatingPointError, match=r"NaN or infinite after 21 drawn tokens of video 1"):
        made(Broken(21, video=1), block_size=8, on_step=lambda done, total: told.append(done))
    assert told == [8, 16]


def test_a_prompt_whose_logits_are_nan_is_told_too() -> None:
    network = FakeTokenNetwork()
    network.output.bias[5] = float("inf")
    with pytest.raises(FloatingPointError, match="after 0 drawn tokens of video 0"):
        made(network)


def test_the_place_of_nan_survives_the_way_to_another_rank() -> None:
    error = pickle.loads(pickle.dumps(NotFiniteLogits(21, 1)))
    assert (error.number, error.video, str(error)) == (21, 1, str(NotFiniteLogits(21, 1)))


def test_an_exception_inside_leaves_nothing_behind() -> None:
    network, whole = Broken(10), FakeTokenNetwork()
    random_state = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="the device is gone"):
        made(network)
    cache: weakref.ref[FakeCache] = weakref.ref(network.caches.pop())
    gc.collect()
    assert cache() is None
    assert torch.equal(made(network), made(whole))
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_an_exception_of_the_progress_callback_ends_the_run() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(on_step=stop)


def test_ranks_go_on_with_the_first_ranks_tokens_whatever_their_own_logits() -> None:
    sent: list[Tensor] = []
    first = made(agree=lambda drawn_B: sent.append(drawn_B.clone()))
    assert len(sent) == NUM_TOKENS
    other_network = FakeTokenNetwork(seed=1)
    assert not torch.equal(made(other_network), first)
    assert torch.equal(made(other_network, agree=lambda drawn_B: drawn_B.copy_(sent.pop(0))), first)


def test_all_ranks_end_where_the_first_one_has_nan() -> None:
    sent: list[Tensor] = []
    with pytest.raises(FloatingPointError) as on_first:
        made(Broken(3, video=2), agree=lambda drawn_B: sent.append(drawn_B.clone()))
    with pytest.raises(FloatingPointError) as on_second:
        made(agree=lambda drawn_B: drawn_B.copy_(sent.pop(0)))
    assert str(on_first.value) == str(on_second.value)


def test_a_full_vocabulary_of_a_network_with_text_is_never_left() -> None:
    shape = TokenShape(
        hidden_size=32,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        vocab_size=40,
        latent_THW=(2, 3, 4),
        text_dim=8,
    )
    network = FakeTokenNetwork(shape)
    tokens = made(network, torch.full((1, 13), shape.vocab_size), seeds=[0], num_tokens=12)
    assert tokens.min() >= 0 and tokens.max() < shape.vocab_size
