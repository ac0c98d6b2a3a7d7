"""FlashAttention 3 on a Hopper GPU: as exact as the other kernels, also for views."""

import pytest
import torch
from torch import Tensor

from cosmos_nemo.models.common import flash
from cosmos_nemo.models.common.attention import dot_product_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(flash.flash_attention_3() is None, reason="no FlashAttention 3 here"),
]


def heads(length: int, *, batch: int = 2, width: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, as views of one tensor, as the layers have them."""
    generator = torch.Generator("cuda").manual_seed(length)
    qkv = torch.randn(length, batch, 3, 3, width, generator=generator, device="cuda", dtype=torch.bfloat16)
    q, k, v = qkv.unbind(3)
    return q, k, v


@pytest.mark.parametrize("length", [1, 77, 1024, 4097])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_attention_is_the_exact_one_up_to_bfloat16(length: int, width: int) -> None:
    q, k, v = heads(length, width=width)
    exact = dot_product_attention(q.float(), k.float(), v.float())
    with torch.inference_mode():
        assert flash.serves(q)
        found = dot_product_attention(q, k, v)
        to_text = dot_product_attention(q, k[:1], v[:1])
    assert (found.shape, found.dtype) == (q.shape, q.dtype)
    assert float((found - exact).norm() / exact.norm()) < 4e-3
    torch.testing.assert_close(to_text, v[:1].expand_as(q))


def test_training_keeps_a_kernel_that_has_gradients() -> None:
    q, k, v = (part.clone().requires_grad_() for part in heads(64))
    assert not flash.serves(q)
    dot_product_attention(q, k, v).sum().backward()
    assert q.grad is not None and k.grad is not None and v.grad is not None
