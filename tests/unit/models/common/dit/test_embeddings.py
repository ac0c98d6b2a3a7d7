import math

import pytest
import torch

from cosmos_nemo.models.common.dit.embeddings import (
    FinalLayer,
    TimestepEmbedding,
    Timesteps,
    patchify,
    unpatchify,
)
from cosmos_nemo.models.common.dit.layers import Modulation

B, C, T, H, W, P = 2, 3, 2, 4, 6, 2


def test_a_token_holds_its_patch_with_channels_slowest() -> None:
    x = torch.arange(B * C * T * H * W).reshape(B, C, T, H, W)
    tokens = patchify(x, P)
    assert tokens.shape == (T * (H // P) * (W // P), B, C * P * P)
    for b in range(B):
        token = 0
        for t in range(T):
            for h in range(0, H, P):
                for w in range(0, W, P):
                    values = [
                        x[b, c, t, h + row, w + column]
                        for c in range(C)
                        for row in range(P)
                        for column in range(P)
                    ]
                    assert tokens[token, b].tolist() == values
                    token += 1


def test_an_output_token_holds_its_patch_with_channels_fastest() -> None:
    grid = (T, H // P, W // P)
    tokens = torch.arange(T * H * W * B * C).reshape(T * grid[1] * grid[2], B, P * P * C)
    x = unpatchify(tokens, grid_THW=grid, patch=P)
    assert x.shape == (B, C, T, H, W)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                for w in range(W):
                    token = (t * grid[1] + h // P) * grid[2] + w // P
                    place = (h % P * P + w % P) * C
                    assert x[b, :, t, h, w].tolist() == tokens[token, b, place : place + C].tolist()


def test_sinusoids_are_cosines_then_sines_of_falling_frequencies_in_float32() -> None:
    times = torch.tensor([-1.5, 0.0, 1.1], dtype=torch.bfloat16)
    found = Timesteps(8)(times)
    assert found.dtype == torch.float32
    for row, time in zip(found.tolist(), times.tolist(), strict=True):
        angles = [time * 10000 ** (-i / 4) for i in range(4)]
        assert row == pytest.approx([math.cos(a) for a in angles] + [math.sin(a) for a in angles], abs=1e-6)


def test_the_timestep_embedding_is_two_linears_with_silu_between() -> None:
    embed = TimestepEmbedding(4, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    inner = x @ embed.linear_1.weight.T
    wanted = (inner / (1 + (-inner).exp())) @ embed.linear_2.weight.T
    torch.testing.assert_close(embed(x), wanted)
    assert wanted.shape == (3, 12)


def _final(dtype: torch.dtype) -> FinalLayer:
    return FinalLayer(8, 12, 3, dtype=dtype).requires_grad_(False)


def test_the_final_layer_is_worked_out_in_float32_for_bfloat16_weights() -> None:
    layer = _final(torch.bfloat16)
    exact = _final(torch.float32)
    exact.load_state_dict({name: tensor.float() for name, tensor in layer.state_dict().items()})
    hidden = torch.randn(5, 2, 8).bfloat16()
    by = Modulation(*torch.randn(3, 2, 8).bfloat16())
    found = layer(hidden, by)
    assert found.dtype == torch.float32
    wanted = exact(hidden.float(), Modulation(*(part.float() for part in by)))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, found.bfloat16().float())


def test_the_final_layer_shifts_then_scales_and_leaves_out_the_gate_of_the_shared_term() -> None:
    layer = _final(torch.float64)
    timestep, shared = torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    _, down, up = layer.adaLN_modulation
    rows = torch.nn.functional.silu(timestep) @ down.weight.T @ up.weight.T + shared[:, :16]
    by = layer.modulation(timestep, shared)
    torch.testing.assert_close(by.shift, rows[:, :8])
    torch.testing.assert_close(by.scale, rows[:, 8:])
    hidden = torch.randn(5, 2, 8, dtype=torch.float64)
    centred = hidden - hidden.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    wanted = (normed * (1 + by.scale) + by.shift) @ layer.linear.weight.T
    torch.testing.assert_close(layer(hidden, by).double(), wanted, rtol=0, atol=1e-5)
