"""Where kernels are taken. What they compute: tests/interpreted_kernels.py and tests/gpu/test_fused.py."""

import importlib.util
import logging
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from cosmos_nemo.models.common import fused
from cosmos_nemo.models.common.attention import TorchRMSNorm
from cosmos_nemo.models.common.rope import apply_rope


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    fused.has_triton.cache_clear()
    yield
    fused.has_triton.cache_clear()


def kernels(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Triton seems installed; a first kernel ends so."""

    def try_out() -> None:
        if error is not None:
            raise error

    module = types.SimpleNamespace(try_out=try_out)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cosmos_nemo.models.common.fused_kernels", module)  # type: ignore[arg-type]
    monkeypatch.setattr("cosmos_nemo.models.common.fused_kernels", module, raising=False)


def test_a_triton_that_cannot_compile_is_left_alone_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels(monkeypatch, RuntimeError("Failed to find C compiler"))
    with caplog.at_level(logging.WARNING):
        assert not fused.has_triton()
    assert "Failed to find C compiler" in caplog.text and "slower" in caplog.text


def test_a_triton_that_works_is_taken_and_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels(monkeypatch, None)
    assert fused.has_triton()
    kernels(monkeypatch, RuntimeError("asked again"))
    assert fused.has_triton()


def test_without_triton_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not fused.has_triton()
    assert not caplog.records


def test_on_a_cpu_the_operations_are_those_of_pytorch() -> None:
    x = torch.randn(5, 2, 3, 16)
    norm = TorchRMSNorm(hidden_size=16, eps=1e-6, dtype=torch.float32)
    angles = torch.randn(5, 1, 1, 8).repeat(1, 1, 1, 2)
    turns = angles.cos(), angles.sin()
    with torch.inference_mode():
        assert torch.equal(fused.norm_heads(x, norm, eps=1e-6), norm(x))
        found = fused.norm_and_rotate(x, norm, *turns, eps=1e-6)
        assert torch.equal(found, apply_rope(norm(x), *turns))
    hidden, (shift, scale) = torch.randn(5, 2, 24), torch.randn(2, 2, 24)
    exact = F.layer_norm(hidden, (24,), eps=1e-6) * (1 + scale) + shift
    found = fused.norm_and_modulate(hidden, shift, scale, eps=1e-6)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(("width", "is_one"), [(1, True), (128, True), (0, False), (96, False)])
def test_powers_of_two(width: int, is_one: bool) -> None:
    assert fused.is_power_of_two(width) is is_one
