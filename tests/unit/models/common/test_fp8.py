"""--precision fp8: what it rounds and how, and which kernel attends; tests/gpu has the kernels themselves."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_nemo.models.build import build_network
from cosmos_nemo.models.common import fp8
from cosmos_nemo.models.common.attention import dot_product_attention
from cosmos_nemo.models.common.backend import fp8_backend
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.models.common.fp8 import FP8Attention, Kernel, attend_rounded, multiply
from cosmos_nemo.models.common.fused import Rounded, round_heads, round_rows
from cosmos_nemo.models.common.missing import BackendError
from cosmos_nemo.parallel.groups import start_alone
from tests.fakes import CPU, TINY, tiny_network

LARGEST = 448.0
LEVELS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
"""All that 8 bits can say, two of them NaN."""


@pytest.fixture(autouse=True)
def _warned_anew() -> Iterator[None]:
    fp8._warn.cache_clear()
    yield
    fp8._warn.cache_clear()


def nearest(values: Tensor) -> Tensor:
    """The nearest level of each value; where two are as near, the one whose last bit is 0."""
    steps = (values.double()[..., None] - LEVELS).abs().nan_to_num(torch.inf)
    is_nearest = steps == steps.amin(-1, keepdim=True)
    is_even = torch.arange(256) % 2 == 0
    place = (2 * is_nearest + (is_nearest & is_even)).int().argmax(-1)
    return LEVELS[place]


def rounded(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """float64: by the power of two that brings the largest value of `dims` into (224, 448]."""
    largest = x.double().abs().amax(dims, keepdim=True)
    scale = 2.0 ** (LARGEST / largest).log2().floor()
    return nearest(x.double() * scale) / scale


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """No two rows of one size."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator)
    return (values * 3.0 ** torch.arange(size[0]).view(-1, *[1] * (len(size) - 1))).to(dtype)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_become_the_nearest_of_256_values(dtype: torch.dtype) -> None:
    x = random(9, 64, dtype=dtype)
    found = round_rows(x)
    assert (found.values.dtype, found.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (found.values.shape, found.scale.shape) == ((9, 64), (9, 1))
    assert torch.equal(found.widened(torch.float64), rounded(x, (1,)))


def test_heads_become_the_nearest_of_256_values() -> None:
    x = random(5, 2, 3, 8) * torch.tensor([1.0, 100.0, 1e-4])[:, None]
    found = round_heads(x)
    assert (found.values.shape, found.scale.shape) == (x.shape, (2, 3))
    assert torch.equal(found.widened(torch.float64), rounded(x, (0, 3)))
    assert torch.equal(round_heads(x.transpose(1, 2)).scale, found.scale.T)


def test_a_scale_is_the_power_of_two_that_brings_the_largest_value_into_224_to_448() -> None:
    largest = torch.cat([2.0 ** torch.arange(-90, 120), random(40, 1, seed=1).abs()[:, 0]])
    edge = torch.tensor([1.75, LARGEST])
    largest = torch.cat([largest, edge, edge.nextafter(edge / 2), edge.nextafter(2 * edge)])
    x = torch.stack([-largest, largest / 3], dim=1)
    for scale in (round_rows(x).scale[:, 0], round_heads(x.T[:, None, :, None]).scale[0]):
        assert (scale.log2() % 1 == 0).all()
        brought = largest.double() / scale
        assert (brought > LARGEST / 2).all() and (brought <= LARGEST).all()


@pytest.mark.parametrize("large", [0.0, 1e-45, 1e-38, 1e-30, 1e30, 2.9e38])
def test_rows_of_nothing_of_tiny_and_of_huge_values_stay_finite(large: float) -> None:
    """And keep their value, but for what is too small for a network to mean it."""
    x = torch.full((1, 32), large) * torch.linspace(-1, 1, 32)
    for result in (round_rows(x), round_heads(x[None, None])):
        found = result.widened(torch.float64).view(x.shape)
        assert found.isfinite().all()
        torch.testing.assert_close(found, x.double(), rtol=1 / 16, atol=max(large / 2**17, 1e-30))
    assert multiply(x[None], torch.ones(16, 32) / 32).isfinite().all()


def test_a_product_is_that_of_the_rounded_values() -> None:
    """Of float64, in which the sums are exact."""
    x, weight = random(4, 3, 48, dtype=torch.float64), random(16, 48, seed=1, dtype=torch.float64)
    found = multiply(x, weight)
    assert torch.equal(found, F.linear(rounded(x, (2,)), rounded(weight, (1,))))
    assert 0.005 < float((found - F.linear(x, weight)).norm() / found.norm()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [48, 40])
def test_a_product_may_be_that_of_gelu_of_its_tokens(dtype: torch.dtype, inputs: int) -> None:
    """Which is rounded once, from float32. Also of a matrix that stays as it is."""
    x, weight = random(4, 3, inputs, dtype=dtype), random(16, inputs, seed=1, dtype=dtype)
    found = multiply(x, weight, gelu=True)
    if inputs % 16:
        assert torch.equal(found, F.linear(F.gelu(x), weight))
        return
    activated = rounded(F.gelu(x.float()), (2,)).to(dtype)
    assert torch.equal(found, F.linear(activated, rounded(weight, (1,)).to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_mlp_is_megatrons_with_products_in_8_bits(dtype: torch.dtype) -> None:
    network = network_in_8_bits().to(dtype)
    mlp = network.decoder.layers[0].mlp
    assert isinstance(mlp, fp8.FP8MLP)
    x = random(4, 2, TINY.hidden_size, dtype=dtype)
    inner = multiply(x, mlp.linear_fc1.weight)
    with torch.no_grad():
        found = mlp(x)[0]
    assert torch.equal(found, multiply(inner, mlp.linear_fc2.weight, gelu=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_has_the_dtype_of_its_tokens(dtype: torch.dtype) -> None:
    x, weight = random(4, 3, 48, dtype=dtype), random(16, 48, seed=1, dtype=dtype)
    found = multiply(x, weight)
    assert (found.dtype, found.shape) == (dtype, (4, 3, 16))
    exact = F.linear(rounded(x, (2,)), rounded(weight, (1,)))
    assert float((found - exact).norm() / exact.norm()) < 2 * torch.finfo(dtype).eps


def test_a_token_is_multiplied_alike_whatever_stands_beside_it() -> None:
    """Among far larger and smaller ones, and alone."""
    x, weight = random(5, 2, 32, dtype=torch.float64), random(16, 32, seed=1, dtype=torch.float64)
    beside = torch.cat([1e6 * x, x, 1e-6 * x.flip(1)])
    found = multiply(beside, weight)[5:10]
    assert torch.equal(found, multiply(x, weight))
    for s in range(5):
        for b in range(2):
            assert torch.equal(multiply(x[s, b][None, None], weight)[0, 0], found[s, b])


@pytest.mark.parametrize(("outputs", "inputs"), [(24, 32), (32, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_that_does_not_divide_by_16_stays_as_it_is_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    weight = random(outputs, inputs, seed=1, dtype=dtype)
    for tokens in (3, 4, 3):
        x = random(tokens, 2, inputs, dtype=dtype)
        assert torch.equal(multiply(x, weight), F.linear(x, weight))
    name = str(dtype).removeprefix("torch.")
    assert warnings_of(caplog) == [
        f"--precision fp8: matrices of {outputs} x {inputs} do not divide by 16 and stay in {name}"
    ]


def network_in_8_bits() -> DiT:
    collection = start_alone(CPU).collection
    network = build_network(
        TINY, backend=fp8_backend(), pg_collection=collection, device=CPU, dtype=torch.float32
    )
    network.load_state_dict(tiny_network().state_dict())
    return network


def called(network: DiT) -> Tensor:
    torch.manual_seed(0)
    return network(
        torch.randn(1, 16, 2, 4, 10),
        modulation=network.modulate(torch.ones(1)),
        text=network.encode_text(torch.randn(1, 12, 32)),
        positions=network.positions((2, 4, 10), fps=24),
    )


def test_the_linears_of_the_videos_tokens_multiply_in_8_bits_and_no_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_in_8_bits()
    name_of = {module.weight.data_ptr(): name for name, module in _linears(network)}
    multiplied: list[str] = []

    def noted(x: Tensor, weight: Tensor, **how: bool) -> Tensor:
        multiplied.append(name_of[weight.data_ptr()])
        return multiply(x, weight, **how)

    monkeypatch.setattr(fp8, "multiply", noted)
    called(network)
    in_a_layer = (
        *("full_self_attention.linear_qkv", "full_self_attention.linear_proj"),
        *("cross_attention.linear_q", "cross_attention.linear_proj"),
        *("mlp.linear_fc1", "mlp.linear_fc2"),
    )
    assert multiplied == [f"decoder.layers.{i}.{name}" for i in range(2) for name in in_a_layer]
    assert "decoder.layers.0.cross_attention.linear_kv" in name_of.values()


def _linears(network: DiT) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in network.named_modules()
        if getattr(module, "weight", None) is not None
    ]


@pytest.mark.parametrize("name", ["full_self_attention.linear_qkv", "full_self_attention.linear_proj"])
def test_a_linear_inside_a_network_gives_the_product_of_the_rounded_values(name: str) -> None:
    """A column parallel and a row parallel one; what stands around them in Megatron adds nothing."""
    linear: Any = network_in_8_bits().decoder.layers[0].get_submodule(name)
    x = random(5, 2, linear.weight.shape[1])
    out, bias = linear(x)
    assert bias is None
    assert torch.equal(out, multiply(x, linear.weight))
    assert not torch.allclose(out, F.linear(x, linear.weight), rtol=1e-4)


def test_only_self_attention_rounds_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_in_8_bits()
    cores = [type(layer.full_self_attention.core_attention) for layer in network.decoder]
    assert cores == [FP8Attention] * 2
    keys: list[int] = []

    def noted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(len(k))
        return attend_rounded(q, k, v)

    monkeypatch.setattr(fp8, "attend_rounded", noted)
    called(network)
    assert keys == [2 * 2 * 5] * 2


def test_a_network_in_8_bits_is_near_the_exact_one() -> None:
    exact, found = called(tiny_network()), called(network_in_8_bits())
    assert 1e-3 < float((found - exact).norm() / exact.norm()) < 0.1


class OnCuda(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


class Heads(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor


def heads(length: int, *, keys: int | None = None, on_cuda: bool = True) -> Heads:
    sizes = (length, keys or length, keys or length)
    parts = [random(size, 2, 3, 8, seed=seed).cos() for seed, size in enumerate(sizes)]
    return Heads(*(part.as_subclass(OnCuda) if on_cuda else part for part in parts))


class Tried:
    """A kernel that remembers the number of queries and keys of every call. It answers `value`."""

    def __init__(self, name: str, *, value: float = 1.0, missing: str | None = None) -> None:
        self.name, self.value, self.missing = name, value, missing
        self.calls: list[tuple[int, int]] = []
        self.raises: Callable[[Tensor], Exception | None] = lambda q: None

    def kernel(self) -> Kernel:
        return Kernel(self.name, lambda q: self.missing, self._attend)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls.append((len(q), len(k)))
        error = self.raises(q)
        if error is not None:
            raise error
        return torch.full_like(q, self.value)


def attention_by(*kernels: Tried) -> FP8Attention:
    return FP8Attention(num_heads=3, head_dim=8, cp=None, kernels=[one.kernel() for one in kernels])


def test_attention_on_a_cpu_is_that_of_rounded_heads_and_asks_no_kernel() -> None:
    first = Tried("first")
    q, k, v = heads(5, keys=7, on_cuda=False)
    found = attention_by(first)(q, k, v, 5)
    expected = dot_product_attention(*(rounded(part, (0, 3)).float() for part in (q, k, v)))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, dot_product_attention(q, k, v), rtol=1e-4)
    assert not first.calls


def test_flash_attention_3_is_given_8_bits_and_their_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[tuple[Tensor, ...], dict[str, Tensor]]] = []
    monkeypatch.setattr(
        fp8.flash, "attend", lambda *parts, **scales: given.append((parts, scales)) or parts[0]
    )
    q, k, v = heads(5, keys=7, on_cuda=False)
    parts = (q, 100 * k, v / 100)
    fp8.attend_by_flash(*parts)
    ((values, scales),) = given
    assert list(scales) == ["q_descale", "k_descale", "v_descale"]
    for value, scale, part in zip(values, scales.values(), parts, strict=True):
        assert (value.dtype, scale.shape) == (torch.float8_e4m3fn, (2, 3))
        assert torch.equal(value.double() * scale[:, :, None], rounded(part, (0, 3)))


def test_flash_attention_3_comes_before_cudnn() -> None:
    assert [kernel.name for kernel in FP8Attention(num_heads=3, head_dim=8, cp=None).kernels] == [
        "FlashAttention 3",
        "cuDNN",
    ]


def test_the_first_kernel_that_can_attends(caplog: pytest.LogCaptureFixture) -> None:
    absent, first, second = Tried("absent", missing="not there"), Tried("a"), Tried("b", value=2)
    attention = attention_by(absent, first, second)
    assert (attention(*heads(5), 5) == 1).all()
    assert (absent.calls, first.calls, second.calls) == ([], [(5, 5)], [])
    assert not warnings_of(caplog) and not attention.has_no_kernel


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_kernel_that_fails_for_a_shape_is_tried_once_for_it_and_then_the_next_one(
    caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    first, second = Tried("cuFirst"), Tried("b", value=2)
    first.raises = lambda q: error("No valid engine configs\nand more") if len(q) == 5 else None
    attention = attention_by(first, second)
    for _ in range(3):
        assert (attention(*heads(5), 5) == 2).all()
    assert (first.calls, len(second.calls)) == ([(5, 5)], 3)
    assert warnings_of(caplog) == [
        "--precision fp8: cuFirst has no kernel for 5 tokens among 5: No valid engine configs"
    ]
    assert (attention(*heads(6), 6) == 1).all()
    assert attention(*heads(5, keys=7), 5).unique().tolist() == [2]
    assert first.calls == [(5, 5), (6, 6), (5, 7)]


def test_a_shape_that_many_layers_have_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        first = Tried("cuFirst")
        first.raises = lambda q: RuntimeError("")
        attention_by(first, Tried("b"))(*heads(5), 5)
    assert warnings_of(caplog) == ["--precision fp8: cuFirst has no kernel for 5 tokens among 5: "]


def test_where_no_kernel_can_attention_stays_in_bfloat16_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    absent, broken = Tried("a", missing="not there"), Tried("b")
    broken.raises = lambda q: RuntimeError("no engine")
    attention = attention_by(absent, broken)
    given = heads(5)
    for _ in range(2):
        assert torch.equal(attention(*given, 5), dot_product_attention(*given))
    assert broken.calls == [(5, 5)]
    assert warnings_of(caplog) == [
        "--precision fp8: b has no kernel for 5 tokens among 5: no engine",
        "--precision fp8: self attention stays in bfloat16 (a: not there; b: see above)",
    ]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN Error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_gpu_without_memory_is_no_missing_kernel(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    first, second = Tried("a"), Tried("b")
    first.raises = lambda q: error
    attention = attention_by(first, second)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match=str(error)):
            attention(*heads(5), 5)
    assert (len(first.calls), second.calls) == (2, [])
    assert not attention.has_no_kernel and not warnings_of(caplog)
    first.raises = lambda q: None
    assert (attention(*heads(5), 5) == 1).all()


def test_a_gpu_that_has_failed_before_is_no_missing_kernel(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Tried("a"), Tried("b")
    first.raises = lambda q: RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        attention_by(first, second)(*heads(5), 5)
    assert second.calls == [] and not warnings_of(caplog)


def test_an_error_of_our_own_is_not_taken_for_a_missing_kernel() -> None:
    first = Tried("a")
    first.raises = lambda q: TypeError("flash_attn_func() got an unexpected keyword argument")
    with pytest.raises(TypeError):
        attention_by(first, Tried("b"))(*heads(5), 5)


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")


def test_a_machine_without_cuda_is_missing_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fp8.fp8_missing() is None


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_a_gpu_from_ada_on_is_missing_nothing(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    gpu(monkeypatch, capability)
    assert fp8.fp8_missing() is None


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6)])
def test_an_older_gpu_has_no_8_bits(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    gpu(monkeypatch, capability)
    assert fp8.fp8_missing() == "8 bits take a GPU from Ada or Hopper on, and NVIDIA A100 is older"


def some_rows(rows: int, inputs: int) -> Rounded:
    return round_rows(torch.randn(rows, inputs))


@pytest.mark.parametrize(("inputs", "is_fast"), [(5120, True), (8192, False)])
def test_long_products_are_added_up_in_float32(
    inputs: int, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(torch, "_scaled_mm", lambda *_, **how: told.append(how["use_fast_accum"]))
    fp8._multiply_on_gpu(some_rows(2, inputs), some_rows(3, inputs))
    assert told == [is_fast]


@pytest.mark.parametrize("said", ["no kernel for sm_89\nand more", ""])
def test_a_gpu_whose_products_fail_is_named_with_the_way_out(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch, "_scaled_mm", fail)
    with pytest.raises(BackendError) as raised:
        fp8._multiply_on_gpu(some_rows(2, 16), some_rows(3, 16))
    assert str(raised.value).endswith(f"({said.partition(chr(10))[0]}). Pass --precision bf16.")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA driver error: out of memory"),
    ],
)
def test_a_gpu_without_memory_for_a_product_says_so(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    multiplied_as(error, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError, match=re.escape(str(error))):
        fp8._multiply_on_gpu(some_rows(2, 16), some_rows(3, 16))


def test_a_product_on_a_gpu_that_has_failed_before_is_no_matter_of_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A BackendError would send a person to --precision bf16, and hide where it comes from."""
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    multiplied_as(error, monkeypatch)
    with pytest.raises(RuntimeError, match="illegal memory access") as raised:
        fp8._multiply_on_gpu(some_rows(2, 16), some_rows(3, 16))
    assert raised.value is error


def multiplied_as(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "_scaled_mm", failing)
