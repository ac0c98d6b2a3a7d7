from dataclasses import replace

import pytest

from cosmos_nemo.catalog import CARDS, TokenShape
from cosmos_nemo.memory import stage_memory, token_stages, token_work
from cosmos_nemo.plan import Plan
from tests.token_network import TINY_TOKENS, FakeTokenNetwork


def test_the_keys_and_values_of_a_video_of_tokens_are_those_published() -> None:
    small, large = TokenShape(), TokenShape(num_layers=40, hidden_size=5120)
    assert 0 < token_work(small) - 838_860_800 < 0.006e9
    assert token_work(large) == pytest.approx(2.1e9, rel=2e-3)
    assert token_work(small, batch_size=3) == 3 * token_work(small)


def test_tensor_parallel_ranks_share_keys_and_values_but_have_all_logits() -> None:
    one, four = token_work(TokenShape()), token_work(TokenShape(), tensor_parallel=4)
    logits = one - 838_860_800
    assert four == 838_860_800 // 4 + logits
    assert token_work(TokenShape(), tensor_parallel=16) == 838_860_800 // 8 + logits


def test_a_video_of_tokens_in_float32_has_twice_the_keys_and_values() -> None:
    assert token_work(TokenShape(), itemsize=4) - token_work(TokenShape()) == 838_860_800 + 2 * 64_000


def test_the_cache_of_a_network_of_tokens_is_as_large_as_predicted() -> None:
    network = FakeTokenNetwork()
    cache = network.new_cache(3)
    held = sum(part.nbytes for pair in cache.keys_values for part in pair)
    logits = 3 * TINY_TOKENS.vocab_size * (4 + 64)
    assert token_work(TINY_TOKENS, batch_size=3, itemsize=4) == held + logits


def test_videos_whose_tokens_are_drawn_together_take_more_of_the_transformer_alone() -> None:
    card = CARDS["Cosmos-Predict1-4B"]
    assert card.tokens is not None
    one, eight = (
        {each.name: each for each in token_stages(card, card.tokens, plan=Plan(), batch_size=size)}
        for size in (1, 8)
    )
    assert eight["token_generation"].work == pytest.approx(8 * one["token_generation"].work, rel=0.01)
    assert {name for name in one if one[name] != eight[name]} == {"token_generation"}


@pytest.mark.parametrize(("name", "measured"), [("4B", 9_807_281_664), ("12B", 26_190_816_768)])
def test_the_transformer_takes_what_it_was_measured_to_take(name: str, measured: int) -> None:
    """Alone on an H200, back end te, nine given frames; of the rows of docs/performance.md the last."""
    card = CARDS[f"Cosmos-Predict1-{name}"]
    assert card.tokens is not None
    _, tokens, *_ = token_stages(card, card.tokens, plan=Plan())
    assert 0 <= tokens.weights + tokens.work - measured <= 0.05 * 2**30


def test_a_model_without_a_diffusion_decoder_needs_no_memory_for_it() -> None:
    card = CARDS["Cosmos-Nano-Autoregressive"]
    assert [stage.name for stage in stage_memory(card, guardrails=False, upsamples=False)] == [
        "discrete_tokenizer",
        "token_generation",
    ]
    with_decoder = replace(card, sources=replace(card.sources, diffusion_decoder="a/b"))
    names = [stage.name for stage in stage_memory(with_decoder, guardrails=False, upsamples=False)]
    assert names[2:] == ["diffusion_decoder", "tokenizer"]
