"""--precision fp8 on a GPU: close to bfloat16, and no memory of earlier calls."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.dit_forward import make_inputs, our_contestant, random_weights, relative_l2
from cosmos_nemo.catalog import CARDS
from cosmos_nemo.models.common import flash, fp8
from cosmos_nemo.models.common.attention import dot_product_attention
from cosmos_nemo.models.common.backend import fp8_backend, torch_backend
from cosmos_nemo.models.common.fp8_cudnn import attend_by_cudnn, cudnn_missing
from cosmos_nemo.parallel.groups import start_alone, stop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or fp8.fp8_missing() is not None, reason="no GPU with 8 bits"
    ),
]
CARD = CARDS["Cosmos-Predict1-7B-Text2World"]
SHAPE = replace(CARD.network, num_layers=4)
LATENT = [2, 32, 32]
"""512 tokens."""


def heads(length: int, *, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return scale * torch.randn(length, 1, 4, 128, generator=generator, device="cuda", dtype=torch.bfloat16)


def needs(missing: str | None) -> None:
    if missing is not None:
        pytest.skip(missing)


@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"), [(1, 64, 32), (37, 96, 4096), (512, 64, 5120), (512, 4096, 16384)]
)
def test_a_product_is_that_of_the_rounded_values(tokens: int, outputs: int, inputs: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(tokens, 1, inputs, device="cuda", generator=generator, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device="cuda", generator=generator, dtype=torch.bfloat16)
    x[0], weight[1] = 300 * x[0], 1e-3 * weight[1]
    with torch.inference_mode():
        found = fp8.multiply(x, weight)
        on_cpu = fp8.multiply(x.cpu().float(), weight.cpu().float())
    assert (found.shape, found.dtype) == ((tokens, 1, outputs), x.dtype)
    for part in (slice(None), slice(0, 1), slice(1, 2)):
        assert relative_l2(found[..., part].cpu().float(), on_cpu[..., part]) < (
            8e-3 if inputs == 5120 else 5e-3
        )
    assert 1e-2 < relative_l2(found.float(), F.linear(x, weight).float()) < 5e-2


@pytest.mark.parametrize("attend", [fp8.attend_by_flash, attend_by_cudnn])
@pytest.mark.parametrize("scale", [1.0, 300.0, 1e-3])
def test_attention_is_close_to_the_exact_one_however_large_values_are(
    attend: Callable[..., Tensor], scale: float
) -> None:
    """q, k and v have scales of their own: v's is not the others'."""
    by_flash = attend is fp8.attend_by_flash
    needs(cudnn_missing() if not by_flash else None if flash.flash_attention_3() else "no FlashAttention 3")
    q, k, v = heads(1024, seed=1), heads(1024, seed=2), heads(1024, seed=3, scale=scale)
    with torch.inference_mode():
        out, exact = attend(q, k, v), dot_product_attention(q.float(), k.float(), v.float())
    assert (out.dtype, out.shape) == (q.dtype, q.shape)
    assert relative_l2(out.float(), exact) < 0.08


@pytest.mark.parametrize("length", [1024, 320, 27_216, 1001])
def test_a_hopper_gpu_has_kernels_for_the_lengths_of_videos(length: int) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("other GPUs have other kernels")
    if flash.flash_attention_3() is None:
        needs(cudnn_missing())
    attention = fp8.FP8Attention(num_heads=4, head_dim=128, cp=None)
    q, k, v = (heads(length, seed=seed) for seed in (1, 2, 3))
    with torch.inference_mode():
        out = attention(q, k, v, length)
        assert not attention.has_no_kernel
        assert 1e-3 < relative_l2(out.view(q.shape).float(), dot_product_attention(q, k, v).float()) < 0.08


def test_a_network_in_8_bits_is_close_and_forgets_what_it_saw() -> None:
    """The network's input is changed in place between its calls."""
    device = torch.device("cuda", 0)
    groups = start_alone(device)
    with torch.inference_mode():
        weights = random_weights(SHAPE, device=device, dtype=torch.bfloat16)
        inputs = make_inputs(SHAPE, LATENT, device=device, dtype=torch.bfloat16)
        exact = our_contestant(SHAPE, torch_backend(), groups, weights.__getitem__, inputs).call()
        rounded = our_contestant(SHAPE, fp8_backend(), groups, weights.__getitem__, inputs)
        first = rounded.call()
        inputs.x_BCTHW.mul_(64)
        far_off = rounded.call()
        inputs.x_BCTHW.div_(64)
        again = rounded.call()
    stop()
    assert 1e-4 < relative_l2(first.float(), exact.float()) < 0.08
    assert torch.equal(first, again) and not torch.equal(first, far_off)
