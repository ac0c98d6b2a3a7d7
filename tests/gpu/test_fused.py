"""The kernels of models/common/fused.py beside the operations that they stand for."""

import pytest
import torch
from torch import Tensor

from cosmos_nemo.models.common.attention import TorchRMSNorm
from cosmos_nemo.models.common.fused import (
    add_and_modulate,
    add_gated,
    has_triton,
    norm_and_modulate,
    norm_and_rotate,
    norm_heads,
    round_heads,
    round_rows,
    runs_of,
)

pytestmark = pytest.mark.gpu
S, B, N, K = 37, 2, 5, 64


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [0, 1])
def test_heads_are_normed_and_rotated_as_by_operations(dtype: torch.dtype, part: int) -> None:
    assert has_triton()
    generator = torch.Generator("cuda").manual_seed(0)
    norm = TorchRMSNorm(hidden_size=K, eps=1e-6, dtype=dtype).to("cuda")
    torch.nn.init.normal_(norm.weight, generator=generator)
    qkv = torch.randn(S, B, N, 3, K, device="cuda", generator=generator).to(dtype)
    x = qkv.permute(3, 0, 1, 2, 4)[part]
    angles = torch.randn(S, 1, 1, K // 2, device="cuda", generator=generator).repeat(1, 1, 1, 2)
    with torch.no_grad():
        exact = norm_and_rotate(x, norm, angles.cos(), angles.sin(), eps=1e-6)
        normed = norm_heads(x, norm, eps=1e-6)
    with torch.inference_mode():
        assert relative(norm_heads(x, norm, eps=1e-6), normed) < (1e-6 if dtype == torch.float32 else 3e-3)
        found = norm_and_rotate(x, norm, angles.cos(), angles.sin(), eps=1e-6)
    assert found.is_contiguous() and found.dtype == dtype
    assert relative(found, exact) < (1e-6 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [96, 2048, 4096, 5120])
def test_tokens_are_normed_and_modulated_as_by_operations(dtype: torch.dtype, width: int) -> None:
    assert has_triton()
    generator = torch.Generator("cuda").manual_seed(0)
    x = (3 + torch.randn(S, B, width, device="cuda", generator=generator)).to(dtype)
    shift, scale = torch.randn(2, B, width, device="cuda", generator=generator).to(dtype)
    with torch.no_grad():
        exact = norm_and_modulate(x, shift, scale, eps=1e-6)
        one = norm_and_modulate(x, shift[:1], scale[:1], eps=1e-6)
    with torch.inference_mode():
        found = norm_and_modulate(x, shift, scale, eps=1e-6)
        assert relative(norm_and_modulate(x, shift[:1], scale[:1], eps=1e-6), one) < 3e-3
    assert relative(found, exact) < (1e-6 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [None, [12, 0, 25]])
@pytest.mark.parametrize("gates", [True, False])
def test_a_change_is_added_normed_and_modulated_as_by_operations(
    dtype: torch.dtype, lengths: list[int] | None, gates: bool
) -> None:
    assert has_triton()
    generator = torch.Generator("cuda").manual_seed(0)
    x, change = torch.randn(2, S, B, 2048, device="cuda", generator=generator).to(dtype)
    rows = [] if lengths is None else [len(lengths)]
    gate, shift, scale = torch.randn(3, *rows, B, 2048, device="cuda", generator=generator).to(dtype)
    runs = None if lengths is None else runs_of(lengths, torch.device("cuda"))
    if not gates:
        change = change[:, :1].contiguous()

    def results() -> list[Tensor]:
        by = gate if gates else None
        both = add_and_modulate(x, change, by, shift, scale, eps=1e-6, runs=runs)
        return [*both, *([add_gated(x, change, gate, runs=runs)] if gates else [])]

    with torch.no_grad():
        exact = results()
    with torch.inference_mode():
        found = results()
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype and relative(one, other) < (1e-6 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [96, 2048, 4096, 16384, 20480])
def test_rows_are_rounded_to_8_bits_as_by_operations(dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(S, width, device="cuda", generator=generator)
    x *= 2.0 ** torch.arange(-S // 2, S // 2, device="cuda")[:, None]
    x[0] = 0
    x[1, 0], x[2, 0], x[3, 0] = 16.0, 448.0, 450.0
    x = x.to(dtype)
    with torch.no_grad():
        exact = round_rows(x)
    with torch.inference_mode():
        found = round_rows(x)
    assert torch.equal(found.scale, exact.scale)
    assert torch.equal(found.values.view(torch.uint8), exact.values.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [96, 8192, 20480])
def test_gelu_of_rows_is_rounded_to_8_bits_as_by_operations(dtype: torch.dtype, width: int) -> None:
    """But for what lies so near to two levels that the last bits of float32 decide."""
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(S, width, device="cuda", generator=generator)
    x = (x * torch.linspace(0.01, 8, S, device="cuda")[:, None]).to(dtype)
    with torch.no_grad():
        exact = round_rows(x, gelu=True)
    with torch.inference_mode():
        found = round_rows(x, gelu=True)
    differing = found.values.float() != exact.values.float()
    assert torch.equal(found.scale, exact.scale)
    assert float(differing.float().mean()) < 1e-4
    assert relative(found.widened(torch.float32), exact.widened(torch.float32)) < 1e-3


@pytest.mark.parametrize("part", [0, 2])
@pytest.mark.parametrize("length", [1, 64, 1000])
def test_heads_are_rounded_to_8_bits_as_by_operations(part: int, length: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(length, B, N, 3, K, device="cuda", generator=generator)
    qkv *= torch.tensor([1.0, 300, 1e-3, 0, 7], device="cuda")[:, None, None]
    x = qkv.to(torch.bfloat16).permute(3, 0, 1, 2, 4)[part]
    with torch.no_grad():
        exact = round_heads(x)
    with torch.inference_mode():
        found = round_heads(x)
    assert found.values.is_contiguous() and torch.equal(found.scale, exact.scale)
    assert torch.equal(found.values.view(torch.uint8), exact.values.view(torch.uint8))
