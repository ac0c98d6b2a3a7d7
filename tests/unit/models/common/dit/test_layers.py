"""The layers against the formulas of spec/predict1-diffusion.md 1.2, written out in float64.

The golden files cannot tell some constants apart (the spec's section 11): here inputs are made that can.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.models.common.dit.layers import (
    AdaLN,
    DiTLayer,
    KeyValue,
    LayerModulation,
    Modulation,
    Rope,
    modulate,
)
from cosmos_nemo.models.common.rope import rope_angles
from tests.fakes import tiny_network

D, N, K, GRID = 64, 4, 16, (2, 3, 2)
SOME = torch.Generator()


@pytest.fixture
def layer() -> DiTLayer:
    SOME.manual_seed(1)
    return tiny_network().decoder.layers[0]


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=SOME)


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    x = x.double()
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    x = x.double()
    return weight.double() * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotated(x_SBNK: Tensor, angles_S11K: Tensor) -> Tensor:
    first, second = x_SBNK.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_SBNK * angles_S11K.double().cos() + turned * angles_S11K.double().sin()


def attend(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
    out = torch.empty_like(q_SBNK)
    for b in range(q_SBNK.shape[1]):
        for n in range(q_SBNK.shape[2]):
            scores_SL = q_SBNK[:, b, n] @ k_LBNK[:, b, n].T / math.sqrt(K)
            out[:, b, n] = scores_SL.softmax(-1) @ v_LBNK[:, b, n]
    return out.flatten(2)


def angles() -> Tensor:
    return rope_angles(GRID, head_dim=K, ratios_THW=(2.0, 1.0, 1.0), fps=12, base_fps=24.0)


def expected_self_attention(layer: DiTLayer, hidden_SBD: Tensor, eps: float = 1e-6) -> Tensor:
    attention = layer.full_self_attention
    qkv = (hidden_SBD.double() @ attention.linear_qkv.weight.double().T).unflatten(-1, (N, 3, K))
    q = rotated(rms_norm(qkv[..., 0, :], attention.q_layernorm.weight, eps), angles())
    k = rotated(rms_norm(qkv[..., 1, :], attention.k_layernorm.weight, eps), angles())
    return attend(q, k, qkv[..., 2, :]) @ attention.linear_proj.weight.double().T


def expected_cross_attention(
    layer: DiTLayer, hidden_SBD: Tensor, text_LBD: Tensor, eps: float = 1e-6
) -> Tensor:
    attention = layer.cross_attention
    q = (hidden_SBD.double() @ attention.linear_q.weight.double().T).unflatten(-1, (N, K))
    kv = (text_LBD.double() @ attention.linear_kv.weight.double().T).unflatten(-1, (N, 2, K))
    q = rms_norm(q, attention.q_layernorm.weight, eps)
    k = rms_norm(kv[..., 0, :], attention.k_layernorm.weight, eps)
    return attend(q, k, kv[..., 1, :]) @ attention.linear_proj.weight.double().T


def self_attention(layer: DiTLayer, hidden_SBD: Tensor) -> Tensor:
    rope = Rope(angles().cos(), angles().sin())
    return layer.full_self_attention(hidden_SBD, rope, len(hidden_SBD))


def cross_attention(layer: DiTLayer, hidden_SBD: Tensor, text_LBD: Tensor) -> Tensor:
    return layer.cross_attention(hidden_SBD, layer.cross_attention.encode_text(text_LBD))


def assert_near(found: Tensor, wanted: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=atol)


def test_self_attention_is_the_formula(layer: DiTLayer) -> None:
    hidden = some(12, 2, D)
    assert_near(self_attention(layer, hidden), expected_self_attention(layer, hidden))


def test_cross_attention_is_the_formula_for_a_text_of_another_length(layer: DiTLayer) -> None:
    hidden, text = some(12, 2, D), some(7, 2, 32)
    assert_near(cross_attention(layer, hidden, text), expected_cross_attention(layer, hidden, text))


@pytest.mark.parametrize("part", [0, 1], ids=["queries", "keys"])
def test_the_norm_of_self_attentions_heads_adds_1e_6_and_not_1e_5(layer: DiTLayer, part: int) -> None:
    hidden = some(12, 1, D)
    weight = layer.full_self_attention.linear_qkv.weight
    weight.unflatten(0, (N, 3, K))[:, part].mul_(1e-3)
    wanted, wrong = (expected_self_attention(layer, hidden, eps) for eps in (1e-6, 1e-5))
    assert (wanted - wrong).abs().max() > 1e-2
    assert_near(self_attention(layer, hidden), wanted)


@pytest.mark.parametrize("part", ["queries", "keys"])
def test_the_norm_of_cross_attentions_heads_adds_1e_6_and_not_1e_5(layer: DiTLayer, part: str) -> None:
    hidden, text = some(12, 1, D), some(7, 1, 32)
    if part == "queries":
        layer.cross_attention.linear_q.weight.mul_(1e-3)
    else:
        layer.cross_attention.linear_kv.weight.unflatten(0, (N, 2, K))[:, 0].mul_(1e-3)
    wanted, wrong = (expected_cross_attention(layer, hidden, text, eps) for eps in (1e-6, 1e-5))
    assert (wanted - wrong).abs().max() > 1e-2
    assert_near(cross_attention(layer, hidden, text), wanted)


def test_the_norm_before_each_sub_layer_adds_1e_6_and_not_1e_5() -> None:
    hidden = 5 + 1e-3 * torch.randn(6, 2, D, dtype=torch.float64)
    shift, scale, gate = torch.randn(3, 2, D, dtype=torch.float64)
    found = modulate(hidden, Modulation(shift, scale, gate))
    wanted, wrong = (layer_norm(hidden, eps) * (1 + scale) + shift for eps in (1e-6, 1e-5))
    assert (wanted - wrong).abs().max() > 0.1
    assert_near(found, wanted, atol=1e-9)


def test_padding_of_the_text_is_attended_as_zero_vectors(layer: DiTLayer) -> None:
    hidden, text = some(12, 1, D), some(7, 1, 32)
    padded = torch.cat([text, torch.zeros(5, 1, 32)])
    found = cross_attention(layer, hidden, padded)
    assert_near(found, expected_cross_attention(layer, hidden, padded))
    assert (found - cross_attention(layer, hidden, text)).abs().max() > 1e-2


def test_no_text_at_all_adds_nothing(layer: DiTLayer) -> None:
    assert torch.equal(cross_attention(layer, some(12, 1, D), torch.zeros(7, 1, 32)), torch.zeros(12, 1, D))


def test_the_feed_forward_network_has_the_exact_gelu(layer: DiTLayer) -> None:
    hidden = some(12, 2, D)
    first, second = (getattr(layer.mlp, name).weight.double() for name in ("linear_fc1", "linear_fc2"))
    inner = hidden.double() @ first.T
    exact = (0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))) @ second.T
    by_tanh = nn.functional.gelu(inner, approximate="tanh") @ second.T
    assert (exact - by_tanh).abs().max() > 1e-4
    assert_near(layer.mlp(hidden)[0], exact)


def test_modulation_is_fused_over_the_sub_layers_with_the_shared_term_added_to_each() -> None:
    SOME.manual_seed(2)
    width, rank, batch = 6, 2, 3
    adaln = AdaLN(width, rank, dtype=torch.float32)
    timestep, shared = some(batch, width), some(batch, 3 * width)
    _, down, up = adaln.adaLN_modulation
    silu = timestep.double() / (1 + (-timestep.double()).exp())
    rows = silu @ down.weight.double().T @ up.weight.double().T
    for j, sub_layer in enumerate(adaln(timestep, shared)):
        for i, part in enumerate(sub_layer):
            wanted = rows[:, (3 * j + i) * width :][:, :width] + shared[:, i * width : (i + 1) * width]
            assert_near(part, wanted, atol=1e-6)


class Sublayer(nn.Module):
    """Returns a given tensor, and keeps what it got."""

    def __init__(self, name: str, journal: list[str], out: Tensor, *, as_tuple: bool = False) -> None:
        super().__init__()
        self.name, self.journal, self.out, self.as_tuple = name, journal, out, as_tuple
        self.got: tuple[object, ...] = ()

    def forward(self, *got: object) -> object:
        self.journal.append(self.name)
        self.got = got
        return (self.out, None) if self.as_tuple else self.out


def test_a_layer_adds_positions_then_attends_to_video_then_to_text_then_feeds_forward(
    layer: DiTLayer,
) -> None:
    journal: list[str] = []
    outs = some(3, 12, 2, D)
    layer.full_self_attention = Sublayer("video", journal, outs[0])
    layer.cross_attention = Sublayer("text", journal, outs[1])
    layer.mlp = Sublayer("mlp", journal, outs[2], as_tuple=True)
    hidden, positions = some(12, 2, D), some(12, 1, D)
    before = hidden.clone()
    by = LayerModulation(*(Modulation(*some(3, 2, D)) for _ in range(3)))
    rope, text = Rope(angles().cos(), angles().sin()), KeyValue(some(7, 2, N, K), some(7, 2, N, K))
    out = layer(hidden, modulation=by, text=text, rope=rope, positions_s1D=positions, num_tokens=12)
    assert journal == ["video", "text", "mlp"]
    state = hidden.double() + positions
    for sub, modulation, added in zip(
        (layer.full_self_attention, layer.cross_attention, layer.mlp), by, outs, strict=True
    ):
        assert_near(sub.got[0], layer_norm(state) * (1 + modulation.scale) + modulation.shift)
        state = state + modulation.gate * added
    assert_near(out, state)
    assert layer.full_self_attention.got[1:] == (rope, 12)
    assert layer.cross_attention.got[1] is text
    assert torch.equal(hidden, before)


class Core(nn.Module):
    """A core attention that answers zeros, and keeps how many tokens it was told."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_tokens: int) -> Tensor:
        self.num_tokens = num_tokens
        return torch.zeros_like(q)


def test_self_attention_is_told_the_tokens_of_all_ranks_and_attention_to_the_text_has_no_ranks(
    layer: DiTLayer,
) -> None:
    assert layer.full_self_attention.core_attention.cp is not None
    assert layer.cross_attention.core_attention.cp is None
    layer.full_self_attention.core_attention = Core()
    layer.full_self_attention(some(12, 1, D), Rope(angles().cos(), angles().sin()), 23)
    assert layer.full_self_attention.core_attention.num_tokens == 23


def test_a_batch_of_two_is_two_batches_of_one(layer: DiTLayer) -> None:
    hidden, text, positions = some(12, 2, D), some(7, 2, 32), some(12, 1, D)
    timestep, shared = some(2, D), some(2, 3 * D)
    rope = Rope(angles().cos(), angles().sin())

    def run(samples: slice) -> Tensor:
        return layer(
            hidden[:, samples],
            modulation=layer.adaLN(timestep[samples], shared[samples]),
            text=layer.cross_attention.encode_text(text[:, samples]),
            rope=rope,
            positions_s1D=positions,
            num_tokens=12,
        )

    both = torch.cat([run(slice(0, 1)), run(slice(1, 2))], dim=1)
    torch.testing.assert_close(run(slice(0, 2)), both, rtol=0, atol=2e-5)
