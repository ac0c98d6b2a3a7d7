from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import LanguageShape
from cosmos_nemo.checkpoint.language_names import language_shapes
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.writer.prompt_upsampler import native_tensors
from cosmos_nemo.stages.language_model import (
    GumbelNoise,
    answer_tokens,
    build_mistral,
    empty_on_device,
    mistral_config,
)

SHAPE = LanguageShape(
    num_layers=2,
    hidden_size=20,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=24,
    vocab_size=40,
    max_length=32,
)
CPU = torch.device("cpu")
END = 2


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Under our names: all random, the norms' too, so that none can be left out or mistaken."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(size, generator=draw) + 0.5
        if len(size) == 1
        else 0.4 * torch.randn(size, generator=draw)
        for name, size in language_shapes(SHAPE).items()
    }


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("upsampler") / "model.pt"
    torch.save(native_tensors(SHAPE, weights), path)
    return open_checkpoint(path)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> nn.Module:
    return build_mistral(SHAPE, checkpoint=checkpoint, device=CPU, dtype=torch.float32)


def normally_built(weights: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    from transformers import MistralForCausalLM

    built = MistralForCausalLM._from_config(mistral_config(SHAPE), dtype=dtype).eval()
    built.load_state_dict(weights)
    return built


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_the_one_transformers_would_build(
    dtype: torch.dtype, weights: dict[str, Tensor], checkpoint: Checkpoint
) -> None:
    ours = build_mistral(SHAPE, checkpoint=checkpoint, device=CPU, dtype=dtype)
    theirs = normally_built(weights, dtype)
    for of in (nn.Module.named_parameters, nn.Module.named_buffers):
        expected = dict(of(theirs))
        found = dict(of(ours))
        assert found.keys() == expected.keys() and found
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
    tokens_1L = torch.arange(12)[None]
    assert torch.equal(ours(tokens_1L).logits, theirs(tokens_1L).logits)
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert ours.config._attn_implementation == "sdpa"


def test_the_rotary_table_is_the_published_formula_in_float32(checkpoint: Checkpoint) -> None:
    model = build_mistral(SHAPE, checkpoint=checkpoint, device=CPU, dtype=torch.bfloat16)
    table = model.model.rotary_emb.inv_freq
    expected = [1e6 ** (-2 * i / SHAPE.head_dim) for i in range(SHAPE.head_dim // 2)]
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, torch.tensor(expected))


def native_logits(native: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Mistral's network written down plainly, over its own names: neighbours in a head turn as one number."""
    length, head = len(tokens), SHAPE.head_dim
    angles = torch.outer(torch.arange(length), 1e6 ** (-torch.arange(0, head, 2) / head))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + SHAPE.norm_eps).rsqrt() * native[name]

    def rotated(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(length, -1, head // 2, 2))
        return torch.view_as_real(pairs * turn).flatten(-2)

    x = native["tok_embeddings.weight"][tokens]
    for i in range(SHAPE.num_layers):
        w = {n.removeprefix(f"layers.{i}."): t for n, t in native.items() if n.startswith(f"layers.{i}.")}
        h = norm(x, f"layers.{i}.attention_norm.weight")
        q, k = (rotated(h @ w[f"attention.w{each}.weight"].T) for each in "qk")
        v = (h @ w["attention.wv.weight"].T).reshape(length, -1, head)
        k, v = (each.repeat_interleave(SHAPE.num_heads // SHAPE.num_kv_heads, dim=1) for each in (k, v))
        scores = torch.einsum("qnd,knd->nqk", q, k) / head**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("nqk,knd->qnd", scores.softmax(-1), v).flatten(1)
        x = x + mixed @ w["attention.wo.weight"].T
        h = norm(x, f"layers.{i}.ffn_norm.weight")
        gate = nn.functional.silu(h @ w["feed_forward.w1.weight"].T)
        x = x + (gate * (h @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ native["output.weight"].T


def test_a_file_of_native_names_makes_the_logits_of_the_native_network(
    checkpoint: Checkpoint, model: nn.Module
) -> None:
    native = {name: checkpoint.read(name) for name in checkpoint.names()}
    tokens = torch.randint(0, SHAPE.vocab_size, (20,), generator=torch.Generator().manual_seed(3))
    expected = native_logits(native, tokens)
    torch.testing.assert_close(model(tokens[None]).logits[0], expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.5


def test_nothing_is_allocated_for_a_file_that_does_not_fit(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = native_tensors(SHAPE, weights)
    del tensors["layers.1.attention.wo.weight"]
    torch.save(tensors, tmp_path / "model.pt")
    monkeypatch.setattr("cosmos_nemo.stages.language_model.empty_on_device", None)
    with pytest.raises(CheckpointError, match=r"missing, first: layers\.1\.attention\.wo\.weight"):
        build_mistral(
            SHAPE, checkpoint=open_checkpoint(tmp_path / "model.pt"), device=CPU, dtype=torch.float32
        )


def test_tables_of_modules_without_a_configuration_are_computed_too() -> None:
    from transformers import PixtralVisionConfig, PixtralVisionModel

    config = PixtralVisionConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, image_size=64
    )
    model = empty_on_device(lambda: PixtralVisionModel(config), device=CPU, dtype=torch.bfloat16)
    expected = dict(PixtralVisionModel(config).named_buffers())
    found = dict(model.named_buffers())
    assert found.keys() == expected.keys() and found
    assert all(torch.equal(found[name], table) for name, table in expected.items())


def answer(model: nn.Module, *, seed: int = 0, temperature: float = 1.0, num_tokens: int = 8) -> list[int]:
    return answer_tokens(
        model, [1, 5, 9], num_tokens=num_tokens, end_token=END, temperature=temperature, seed=seed
    )


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(model: nn.Module) -> None:
    assert answer(model, seed=1) == answer(model, seed=1)
    assert len({tuple(answer(model, seed=seed)) for seed in range(5)}) > 1


def test_drawing_leaves_the_global_random_state_alone(model: nn.Module) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = answer(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert answer(model) == first


def test_a_low_temperature_takes_the_likeliest_token(model: nn.Module) -> None:
    drawn = answer(model, temperature=1e-4)
    tokens = [1, 5, 9]
    for token in drawn:
        assert token == int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        tokens.append(token)


def test_noise_draws_each_token_as_often_as_the_softmax_says() -> None:
    logits_BV = torch.tensor([0.0, 1.0, -1.0, 2.0])
    noise = GumbelNoise(seed=0)
    count = 4000
    drawn = noise(torch.zeros(count, 1), logits_BV.expand(count, 4)).argmax(-1)
    found = torch.bincount(drawn, minlength=4) / count
    torch.testing.assert_close(found, logits_BV.softmax(-1), atol=0.03, rtol=0)


def test_the_answer_ends_with_its_end_or_when_the_tokens_run_out(model: nn.Module) -> None:
    likeliest = answer(model, temperature=1e-4, num_tokens=6)
    assert len(likeliest) == 6 and END not in likeliest
    # A token that is no repetition of an earlier one, so that the answer cannot end before it.
    end = next(token for i, token in enumerate(likeliest) if i > 0 and token not in likeliest[:i])
    stopped = answer_tokens(model, [1, 5, 9], num_tokens=6, end_token=end, temperature=1e-4, seed=0)
    assert stopped == likeliest[: likeliest.index(end) + 1]


def test_logits_are_made_for_the_last_token_only(model: nn.Module) -> None:
    lengths = []
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: lengths.append(logits.shape[1]))
    try:
        drawn = answer(model, num_tokens=3)
    finally:
        hook.remove()
    assert lengths == [1] * len(drawn) and len(drawn) > 1


def test_earlier_tokens_are_not_computed_again(model: nn.Module) -> None:
    lengths = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[1]))
    try:
        drawn = answer(model, num_tokens=4)
    finally:
        hook.remove()
    assert lengths == [3] + [1] * (len(drawn) - 1) and len(drawn) > 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float, checkpoint: Checkpoint) -> None:
    broken = build_mistral(SHAPE, checkpoint=checkpoint, device=CPU, dtype=torch.float32)
    broken.lm_head.weight[3, 4] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinite after 3 tokens"):
        answer(broken)
