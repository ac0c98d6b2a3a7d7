"""What --precision fp8 does where a kernel or a number of tokens is in its way; tests/gpu has the rest."""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.models.common import backend, fp8
from cosmos_nemo.models.common.attention import dot_product_attention
from tests.fakes import FakeGroup


class FakeAttention(nn.Module):
    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dot_product_attention(q, k, v).flatten(2)


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> fp8.FP8Attention:
    monkeypatch.setattr(backend, "_te_attention", FakeAttention)
    fp8._warn.cache_clear()
    return fp8.FP8Attention(num_heads=2, head_dim=8, cp=None)


def qkv(length: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, length, 1, 2, 8)
    return q, k, v


def test_a_shape_without_a_kernel_stays_in_bfloat16_and_is_tried_once(
    attention: fp8.FP8Attention, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    def no_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tried.append(len(q))
        if len(q) == 5:
            raise RuntimeError("No valid engine configs\nand more")
        return torch.zeros_like(q)

    monkeypatch.setattr(fp8, "attend_in_fp8", no_kernel)
    given = qkv(5)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(attention(*given, 5), dot_product_attention(*given))
    assert tried == [5]
    assert caplog.messages == [
        "--precision fp8: self attention of 5 tokens stays in bfloat16: No valid engine configs"
    ]
    assert not attention(*qkv(6), 6).any()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN Error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_gpu_without_memory_is_no_missing_kernel(
    attention: fp8.FP8Attention, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(fp8, "attend_in_fp8", full)
    with pytest.raises(torch.OutOfMemoryError, match=str(error)):
        attention(*qkv(5), 5)
    assert not attention.has_no_kernel


def test_heads_that_do_not_divide_by_the_ranks_take_no_ring_which_has_no_8_bits(
    attention: fp8.FP8Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_te_ring", lambda *_: FakeAttention(2, 8))
    group = FakeGroup(3, 0)
    assert backend.TEAttention(num_heads=2, head_dim=8, cp=group).ring is not None  # type: ignore[arg-type]
    assert fp8.FP8Attention(num_heads=2, head_dim=8, cp=group).ring is None


def test_tokens_that_do_not_divide_by_eight_are_multiplied_in_bfloat16_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fp8._warn.cache_clear()
    monkeypatch.setattr(fp8, "_region", lambda: nullcontext("8 bits"))
    with caplog.at_level(logging.WARNING):
        with fp8.fp8_products(16) as region:
            assert region == "8 bits"
        for _ in range(2):
            with fp8.fp8_products(12) as region:
                assert region is None
    assert caplog.messages == [
        "--precision fp8: 12 tokens do not divide by 8: their products stay in bfloat16"
    ]
