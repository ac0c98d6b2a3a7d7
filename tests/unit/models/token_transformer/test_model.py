"""What the numbers of golden/predict1_ar_transformer_* do not hold: caches, batches, errors, the build."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.token_formats import token_parameter_shapes
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.cache import KeyValueCache
from cosmos_nemo.models.token_transformer.model import (
    TokenTransformer,
    TokenTransformerError,
    build_token_transformer,
)
from cosmos_nemo.parallel.groups import start_alone
from tests.fakes import CPU, FakeGroup
from tests.tiny_tokens import ALL, BASE, TEXT, decode_all, random_text, random_tokens, tiny_transformer


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=ALL)
def network(request: pytest.FixtureRequest) -> TokenTransformer:
    return tiny_transformer(ALL[request.param])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def build(shape: TokenShape, *, ranks: int = 1, device: torch.device = CPU) -> TokenTransformer:
    groups = start_alone(CPU).collection if ranks == 1 else SimpleNamespace(tp=FakeGroup(ranks, 0))
    return build_token_transformer(
        shape,
        backend=torch_backend(),
        pg_collection=groups,  # type: ignore[arg-type]
        device=device,
        dtype=torch.float32,
    )


# The build


@pytest.mark.parametrize("shape", ALL.values(), ids=ALL)
def test_the_parameters_are_those_that_the_checkpoint_package_knows(shape: TokenShape) -> None:
    network = build(shape)
    found = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert found == token_parameter_shapes(shape)
    assert dict(network.named_buffers()) == {}, "a buffer would be garbage after meta"
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_network_is_built_where_it_is_asked_to_be() -> None:
    network = build(BASE, device=torch.device("meta"))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert network.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "ranks", "sentence"),
    [
        ({}, 4, r"2 key and value heads do not divide by 4 tensor parallel ranks: take \[1, 2\] ranks"),
        ({"vocab_size": 127}, 2, "127 rows of the vocabulary do not divide by 2"),
        ({"ffn_hidden_size": 95}, 2, "95 channels of the MLP do not divide by 2"),
        ({"num_heads": 3}, 1, "3 query heads do not divide by 2 key and value heads"),
        ({"head_dim": 15}, 1, "Heads of 15 channels"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(change: dict[str, int], ranks: int, sentence: str) -> None:
    with pytest.raises(TokenTransformerError, match=sentence):
        build(replace(BASE, **change), ranks=ranks)  # type: ignore[arg-type]


# Prefill and decode


@pytest.mark.parametrize("prompt", [1, 7, 23])
def test_prefill_and_decode_give_the_logits_of_forward_at_every_position(
    network: TokenTransformer, prompt: int
) -> None:
    tokens, text = random_tokens(network.shape), random_text(network)
    expected = network(tokens, text=text)
    close(decode_all(network, tokens, prompt=prompt, text=text), expected[:, prompt - 1 :])
    assert expected.std() > 0.5


def test_a_token_changes_no_logits_before_it_and_all_after(network: TokenTransformer) -> None:
    tokens, text = random_tokens(network.shape), random_text(network)
    changed = tokens.clone()
    changed[0, 11] = (tokens[0, 11] + 1) % network.shape.vocab_size
    before, after = network(tokens, text=text), network(changed, text=text)
    assert torch.equal(before[:, :11], after[:, :11])
    assert ((before - after)[0, 11:].abs().amax(dim=-1) > 1e-3).all()


def test_samples_of_a_batch_know_nothing_of_each_other(network: TokenTransformer) -> None:
    tokens = random_tokens(network.shape, batch=3)
    text_B = random_text(network, batch=3)
    both = decode_all(network, tokens, prompt=9, text=text_B)
    for i in range(3):
        own = slice(i, i + 1)
        text = (
            None if text_B is None else [type(kv)(kv.k[:, own], kv.v[:, own].contiguous()) for kv in text_B]
        )
        if text is not None:
            text = [kv._replace(k=kv.k.contiguous()) for kv in text]
        close(both[own], decode_all(network, tokens[own], prompt=9, text=text))
    assert (both[0] - both[1]).abs().max() > 0.1


@pytest.mark.parametrize("bucket", [24, 26, 32, 37])
def test_the_size_of_the_bucket_changes_nothing(bucket: int) -> None:
    network = tiny_transformer(replace(BASE, latent_THW=(10, 2, 2)))
    tokens = random_tokens(network.shape)[:, :24]
    close(
        decode_all(network, tokens, prompt=5, bucket=bucket),
        decode_all(network, tokens, prompt=5, bucket=40),
    )


def test_what_lies_in_the_cache_beyond_the_position_changes_nothing(network: TokenTransformer) -> None:
    tokens, text = random_tokens(network.shape), random_text(network)
    stale = network.new_cache(1)
    for part in (stale.k, stale.v):
        part.copy_(100 * torch.randn(part.shape, generator=torch.Generator().manual_seed(3)))
    fresh = decode_all(network, tokens, prompt=4, text=text)
    assert torch.equal(decode_all(network, tokens, prompt=4, text=text, cache=stale), fresh)


def test_a_cache_serves_one_video_after_another_and_its_memory_never_moves(network: TokenTransformer) -> None:
    text, cache = random_text(network), network.new_cache(1)
    before = cache.k.data_ptr(), cache.v.data_ptr()
    for seed in (5, 6):
        tokens = random_tokens(network.shape, seed=seed)
        close(
            decode_all(network, tokens, prompt=6, text=text, cache=cache),
            network(tokens, text=text)[:, 5:],
        )
    assert (cache.k.data_ptr(), cache.v.data_ptr()) == before


def test_a_video_of_nan_spoils_none_after_it(network: TokenTransformer) -> None:
    tokens, cache = random_tokens(network.shape)[:, :24], network.new_cache(1)
    text = random_text(network) if network.shape.takes_text else None
    exact = network(tokens, text=text)[:, -1]
    for part in (cache.k, cache.v):
        part.fill_(torch.nan)
    network.prefill(tokens[:, :-1], cache, text=text)
    found = network.decode(
        tokens[:, -1:], cache, position=torch.tensor(23), bucket=cache.max_length, text=text
    )
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def test_decoding_has_no_gradient_whatever_the_weights_want(network: TokenTransformer) -> None:
    tokens, cache = random_tokens(network.shape)[:, :24], network.new_cache(1)
    text = random_text(network) if network.shape.takes_text else None
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = network.prefill(tokens[:, :-1], cache, text=text)
            step = {"position": torch.tensor(23), "bucket": cache.max_length}
            assert not logits.requires_grad
            assert not network.decode(tokens[:, -1:], cache, text=text, **step).requires_grad
    finally:
        for parameter in network.parameters():
            parameter.requires_grad_(False)


def test_the_cache_holds_a_whole_video_in_the_networks_dtype() -> None:
    network = tiny_transformer(TEXT, dtype=torch.bfloat16)
    cache = network.new_cache(3)
    assert cache.k.shape == cache.v.shape == (2, 24 + 64, 3, 2, 16)
    assert (cache.k.dtype, cache.batch_size, cache.max_length) == (torch.bfloat16, 3, 88)
    assert not cache.k.any() and not cache.v.any()


def test_decoding_writes_its_own_place_alone() -> None:
    network = tiny_transformer(BASE)
    cache, tokens = network.new_cache(1), random_tokens(BASE)
    network.prefill(tokens[:, :8], cache)
    before = cache.k.clone()
    network.decode(tokens[:, 8:9], cache, position=torch.tensor(8), bucket=16)
    changed = (cache.k != before).flatten(2).any(dim=2).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [8]


def test_decoding_reads_the_position_from_its_tensor_when_it_runs() -> None:
    """As a recorded CUDA graph does: the same tensors, changed in place."""
    network = tiny_transformer(BASE)
    tokens, cache = random_tokens(BASE), network.new_cache(1)
    network.prefill(tokens[:, :3], cache)
    token, position = tokens[:, 3:4].clone(), torch.tensor(3)
    for i in range(3, 8):
        token.copy_(tokens[:, i : i + 1])
        position.fill_(i)
        logits = network.decode(token, cache, position=position, bucket=24)
        close(logits, network(tokens[:, : i + 1])[:, -1])


def test_decoding_takes_no_number_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that would end the recording of a graph; the position is checked on the CPU alone."""
    network = tiny_transformer(TEXT)
    tokens, text, cache = random_tokens(TEXT), random_text(network), network.new_cache(1)
    network.prefill(tokens[:, :3], cache, text=text)
    position = torch.tensor(3)

    def refuse(*_: object) -> None:
        raise AssertionError("a number was taken from a tensor")

    monkeypatch.setattr(TokenTransformer, "_check_step", lambda *_, **__: None)
    for name in ("item", "tolist", "__int__", "__bool__", "__float__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    network.decode(tokens[:, 3:4], cache, position=position, bucket=16, text=text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_float32_whatever_the_weights_are(dtype: torch.dtype) -> None:
    network = tiny_transformer(BASE, dtype=dtype)
    tokens, cache = random_tokens(BASE), network.new_cache(1)
    found = [network(tokens), network.prefill(tokens[:, :4], cache)]
    found.append(network.decode(tokens[:, 4:5], cache, position=torch.tensor(4), bucket=8))
    assert [tuple(logits.shape) for logits in found] == [(1, 24, 128), (1, 128), (1, 128)]
    assert {logits.dtype for logits in found} == {torch.float32}


def test_bfloat16_weights_give_the_logits_to_a_few_per_cent(network: TokenTransformer) -> None:
    low = tiny_transformer(network.shape, dtype=torch.bfloat16)
    tokens = random_tokens(network.shape)
    exact = network(tokens, text=random_text(network))
    for rounded in (
        low(tokens, text=random_text(low)),
        decode_all(low, tokens, prompt=1, text=random_text(low)),
    ):
        assert (rounded - exact).norm() < 0.05 * exact.norm()


# Text


def test_the_texts_keys_are_made_once_for_a_video() -> None:
    network = tiny_transformer(TEXT)
    calls = []
    for layer in network.decoder:
        layer.cross_attention.linear_kv.register_forward_hook(lambda *_: calls.append(1))
    text = random_text(network)
    assert len(calls) == TEXT.num_layers
    decode_all(network, random_tokens(TEXT), prompt=3, text=text)
    assert len(calls) == TEXT.num_layers


def test_every_token_and_layer_depends_on_the_text() -> None:
    network = tiny_transformer(TEXT)
    tokens = random_tokens(TEXT)
    one, other = (network(tokens, text=random_text(network, seed=seed)) for seed in (7, 8))
    assert ((one - other).abs().amax(dim=-1) > 1e-3).all()
    text = random_text(network, seed=7)
    assert text is not None
    for layer in range(TEXT.num_layers):
        swapped = list(text)
        swapped[layer] = swapped[layer]._replace(v=-swapped[layer].v)
        assert (network(tokens, text=swapped) - one).abs().max() > 1e-3


def test_the_embedding_of_positions_is_added_before_every_layer() -> None:
    network = tiny_transformer(TEXT)
    tokens, text = random_tokens(TEXT), random_text(network)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for layer in network.decoder:
        layer.input_layernorm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        layer.register_forward_hook(lambda *args: outputs.append(args[-1]))
    network(tokens, text=text)
    absolute = network.positions(tokens.shape[1]).absolute
    assert absolute is not None
    assert torch.equal(inputs[0], network.embedding(tokens) + absolute)
    assert torch.equal(inputs[1], outputs[0] + absolute)


# What does not fit


def step(
    network: TokenTransformer,
    cache: KeyValueCache,
    *,
    tokens: Tensor | None = None,
    position: Tensor | None = None,
    bucket: int = 16,
) -> Tensor:
    return network.decode(
        torch.zeros(1, 1, dtype=torch.int64) if tokens is None else tokens,
        cache,
        position=torch.tensor(3) if position is None else position,
        bucket=bucket,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"bucket": 25}, "bucket of 25 places: the cache has 24"),
        ({"bucket": 0}, "bucket of 0 places"),
        ({"position": torch.tensor(16)}, "Position 16 does not lie in the bucket of 16 places, 0 to 15"),
        ({"position": torch.tensor(-1)}, "Position -1"),
        ({"position": torch.tensor([3])}, r"shape \(1,\)"),
        ({"position": torch.tensor(3, dtype=torch.int32)}, "torch.int32"),
        ({"position": torch.tensor(3, device="meta")}, "on meta"),
        ({"tokens": torch.zeros(1, 2, dtype=torch.int64)}, r"\(1, 2\) are not \[B, 1\]"),
        ({"tokens": torch.zeros(2, 1, dtype=torch.int64)}, r"2 videos do not fit a cache of 1"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_and_writes_nothing(
    arguments: dict[str, object], sentence: str
) -> None:
    network = tiny_transformer(BASE)
    cache = network.new_cache(1)
    with pytest.raises(TokenTransformerError, match=sentence):
        step(network, cache, **arguments)  # type: ignore[arg-type]
    assert not cache.k.any() and not cache.v.any()


def test_the_last_place_of_the_cache_can_be_decoded() -> None:
    network = tiny_transformer(BASE)
    step(network, network.new_cache(1), position=torch.tensor(23), bucket=24)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (torch.zeros(1, 25, dtype=torch.int64), "25 tokens are more than a video has: 24"),
        (torch.zeros(1, 0, dtype=torch.int64), r"shape \(1, 0\)"),
        (torch.zeros(5, dtype=torch.int64), r"shape \(5,\) are not \[B, S\]"),
        (torch.tensor([[5, 128]]), "from 5 to 128: this network knows 0 to 127"),
        (torch.tensor([[-1, 5]]), "from -1 to 5"),
        (torch.zeros(2, 5, dtype=torch.int64), "2 videos do not fit a cache of 1: call new_cache"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(tokens: Tensor, sentence: str) -> None:
    network = tiny_transformer(BASE)
    with pytest.raises(TokenTransformerError, match=sentence):
        network.prefill(tokens, network.new_cache(1))


def test_text_is_asked_for_by_a_model_that_attends_to_it_and_refused_by_another() -> None:
    with_text, without = tiny_transformer(TEXT), tiny_transformer(BASE)
    text = random_text(with_text)
    with pytest.raises(TokenTransformerError, match="pass text=encode_text"):
        with_text(random_tokens(TEXT))
    with pytest.raises(TokenTransformerError, match="leave out text"):
        without(random_tokens(BASE), text=text)
    with pytest.raises(TokenTransformerError, match="attends to no text"):
        without.encode_text(torch.zeros(1, 5, 24))
    with pytest.raises(TokenTransformerError, match=r"\(1, 5, 23\) is not \[B, L, 24\]"):
        with_text.encode_text(torch.zeros(1, 5, 23))
    with pytest.raises(TokenTransformerError, match="2 videos, and texts of 1"):
        with_text(random_tokens(TEXT, batch=2), text=text)


def test_a_cache_of_no_videos_is_refused() -> None:
    with pytest.raises(TokenTransformerError, match="0 videos"):
        tiny_transformer(BASE).new_cache(0)


# Training


def test_without_checks_it_says_the_same() -> None:
    network = tiny_transformer(BASE)
    tokens = random_tokens(BASE, batch=2)[:, :7]
    assert torch.equal(network.predict(tokens, network.positions(7)), network(tokens))
