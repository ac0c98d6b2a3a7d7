"""Run with TRITON_INTERPRET=1: `python -m tests.interpreted_kernels heads`, or modulation, or tokens.

The interpreter knows no bfloat16: float16 stands in for what rounds.
"""

import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.models.common import fused, fused_kernels, norm_silu, norm_silu_kernels
from cosmos_nemo.models.common.attention import TorchRMSNorm
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.model import build_token_transformer
from cosmos_nemo.parallel.groups import start_alone
from tests.tiny_tokens import random_tokens, random_weights

DTYPES = {torch.float32: 1e-6, torch.float16: 2e-3}
SHAPE = TokenShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    ffn_hidden_size=48,
    vocab_size=64,
    latent_THW=(3, 8, 8),
)


def check_heads() -> None:
    for dtype, limit in DTYPES.items():
        parts = torch.randn(10, 2, 3, 3, 32).to(dtype).permute(3, 0, 1, 2, 4)
        norm = TorchRMSNorm(hidden_size=32, eps=1e-6, dtype=dtype)
        torch.nn.init.normal_(norm.weight)
        angles = torch.randn(10, 1, 1, 16).repeat(1, 1, 1, 2)
        turns = angles.cos(), angles.sin()
        weight = norm.weight.detach()
        for x in parts:
            assert_near(
                fused_kernels.norm_and_rotate(x, weight, turns, 1e-6),
                fused.norm_and_rotate(x, norm, *turns, eps=1e-6),
                limit,
            )
            assert_near(
                fused_kernels.norm_and_rotate(x, weight, None, 1e-6),
                fused.norm_heads(x, norm, eps=1e-6),
                limit,
            )


def check_modulation() -> None:
    for dtype, limit in DTYPES.items():
        x = torch.randn(7, 2, 48).to(dtype)
        shift, scale = torch.randn(2, 2, 48).to(dtype)
        _, found = fused_kernels.add_and_modulate(x, None, (None, shift, 1 + scale), None, 1e-6)
        assert_near(found, fused.norm_and_modulate(x, shift, scale, eps=1e-6), limit)


def check_additions() -> None:
    """With and without a gate, a batch of its own, a norm and runs, one of them empty."""
    for dtype, limit in DTYPES.items():
        for lengths in (None, [3, 0, 4]):
            runs = lengths and fused.runs_of(lengths, torch.device("cpu"))
            rows = runs and runs.row_of_token
            x, change = torch.randn(2, 7, 2, 48).to(dtype)
            gate, shift, scale = torch.randn(3, *([3] if lengths else []), 2, 48).to(dtype)
            for gated, moved in ((gate, change), (None, change), (None, change[:, :1].contiguous())):
                found = fused_kernels.add_and_modulate(x, moved, (gated, shift, 1 + scale), rows, 1e-6)
                exact = fused.add_and_modulate(x, moved, gated, shift, scale, eps=1e-6, runs=runs)
                assert_near(found[0], exact[0], limit)
                assert_near(found[1], exact[1], limit)
            found = fused_kernels.add_and_modulate(x, change, (gate, None, None), rows, 0.0)
            assert_near(found[0], fused.add_gated(x, change, gate, runs=runs), limit)


def check_rounding() -> None:
    """Rows and heads, some of nothing. The values need no rounding: the interpreter's loses carries."""
    rows = _of_8_bits(9, 48) * 2.0 ** torch.arange(-4, 5)[:, None]
    rows[0] = 0
    assert_same(fused_kernels.round_rows(rows), fused.round_rows(rows))
    large = _of_8_bits(9, 48)
    large[large.abs() < 16] = 0  # of the others GELU leaves all or nothing
    assert torch.equal(_gelu_of(large), large.relu())
    small = torch.randn(9, 48)
    assert_near(_gelu_of(small), torch.nn.functional.gelu(small), 0.08)
    check_gelu()


def check_gelu() -> None:
    """Before it is rounded; beyond 13 float32 has no tail any more."""
    x = torch.linspace(-14, 14, 4097)
    found = torch.empty_like(x)
    _gelu_alone[(1,)](x, found, x.numel(), BLOCK=8192)
    exact = torch.nn.functional.gelu(x.double())
    assert float(((found - exact).abs() / (x.abs() + 1e-30)).max()) < 4e-7


@triton.jit
def _gelu_alone(x, out, length, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    value = tl.load(x + places, mask=places < length, other=0.0)
    tl.store(out + places, fused_kernels._gelu(value), mask=places < length)
    parts = _of_8_bits(70, 2, 3, 3, 32) * torch.tensor([1.0, 256, 0])[:, None, None]
    for part in parts.permute(3, 0, 1, 2, 4):
        assert_same(fused_kernels.round_heads(part), fused.round_heads(part))


def _gelu_of(rows: Tensor) -> Tensor:
    return fused.Rounded(*fused_kernels.round_rows(rows, gelu=True)).widened(rows.dtype)


def _of_8_bits(*size: int) -> Tensor:
    return (64 * torch.randn(size)).to(torch.float8_e4m3fn).float()


def assert_same(found: tuple[Tensor, Tensor], exact: fused.Rounded) -> None:
    values, scale = found
    assert torch.equal(scale, exact.scale)
    assert torch.equal(values.view(torch.uint8), exact.values.view(torch.uint8))


def check_norms() -> None:
    """Of clips with their channels last, the last pieces of frames and rows of pixels not full."""
    for dtype, limit in DTYPES.items():
        x = (3 + torch.randn(2, 24, 3, 19, 40)).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        norm = torch.nn.GroupNorm(1, 24, eps=1e-6).to(dtype)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        for silu in (True, False):
            found = norm_silu_kernels.group_norm_silu(x, norm.weight, norm.bias, 1e-6, silu)
            assert found.stride() == x.stride()
            assert_near(found, norm_silu.group_norm_silu(x, norm, silu=silu), 10 * limit)
            found = norm_silu_kernels.rms_norm_silu(x, norm.weight, silu)
            assert found.stride() == x.stride()
            assert_near(found, norm_silu.rms_norm_silu(x, norm.weight, silu=silu), 10 * limit)


def check_tokens() -> None:
    """One video takes the products of one_token_kernels.py, two take the linears."""
    for dtype, limit in DTYPES.items():
        for batch in (1, 2):
            compare_tokens(SHAPE, dtype, limit, batch)


def compare_tokens(shape: TokenShape, dtype: torch.dtype, limit: float, batch: int) -> None:
    device = torch.device("cpu")
    network = build_token_transformer(
        shape,
        backend=torch_backend(),
        pg_collection=start_alone(device).collection,
        device=device,
        dtype=dtype,
    )
    weights = random_weights(shape)
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
    tokens = random_tokens(shape, batch=batch)
    caches = {fuses: network.new_cache(batch) for fuses in (True, False)}
    for cache in caches.values():
        network.prefill(tokens[:, :100], cache)
    for place in (100, 101):
        logits = {}
        for fuses, cache in caches.items():
            network.fuses_steps = fuses
            token, position = tokens[:, place : place + 1], torch.tensor(place)
            logits[fuses] = network.decode(token, cache, position=position, bucket=192)
        assert_near(logits[True], logits[False], limit)
    for part in ("k", "v"):
        assert_near(*(getattr(caches[fuses], part) for fuses in (True, False)), limit)


def assert_near(found: Tensor, exact: Tensor, limit: float) -> None:
    error = float((found.double() - exact.double()).norm() / exact.double().norm())
    assert found.dtype == exact.dtype and error < limit, error


if __name__ == "__main__":
    with torch.no_grad():
        checks = (
            check_heads,
            check_modulation,
            check_additions,
            check_rounding,
            check_norms,
            check_tokens,
        )
        {check.__name__.removeprefix("check_"): check for check in checks}[sys.argv[1]]()
