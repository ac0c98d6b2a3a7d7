"""The autoregressive transformer on a GPU: its back ends, its decoding kernels, and a recorded step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.models.common.backend import te_backend, torch_backend
from cosmos_nemo.models.token_transformer.attention import attend_with_one
from cosmos_nemo.models.token_transformer.model import TokenTransformer, build_token_transformer
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.tools.main import main as tools
from tests.tiny_tokens import random_text, random_tokens, random_weights

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parents[1] / "golden" / "predict1_ar_transformer_crossattn.safetensors"
BASE = TokenShape(
    num_layers=3,
    hidden_size=512,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    ffn_hidden_size=1024,
    vocab_size=1024,
    latent_THW=(3, 16, 16),
)
SHAPES = {"base": BASE, "text": replace(BASE, text_dim=256, text_length=64)}
PROMPT = 256


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def build(shape: TokenShape, *, backend: str, dtype: torch.dtype) -> TokenTransformer:
    device = torch.device("cuda", 0)
    network = build_token_transformer(
        shape,
        backend=te_backend() if backend == "te" else torch_backend(),
        pg_collection=start_alone(device).collection,
        device=device,
        dtype=dtype,
    )
    weights = random_weights(shape)
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
    return network


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("backend", ["torch", "te"])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_back_ends_agree_in_bfloat16_at_once_and_token_by_token(kind: str, backend: str) -> None:
    shape = SHAPES[kind]
    exact_network, network = (
        build(shape, backend=name, dtype=dtype)
        for name, dtype in (("torch", torch.float32), (backend, torch.bfloat16))
    )
    tokens = random_tokens(shape, batch=2)[:, : PROMPT + 40].to("cuda")
    exact = exact_network(tokens, text=random_text(exact_network, batch=2))
    text, cache = random_text(network, batch=2), network.new_cache(2)
    assert relative(network(tokens, text=text), exact) < 3e-2
    network.prefill(tokens[:, :PROMPT], cache, text=text)
    for place in range(PROMPT, PROMPT + 40):
        logits = network.decode(
            tokens[:, place : place + 1],
            cache,
            position=torch.tensor(place, device=network.device),
            bucket=512,
            text=text,
        )
        assert relative(logits, exact[:, place]) < 3e-2


@pytest.mark.parametrize("kind", SHAPES)
def test_a_recorded_step_makes_the_logits_of_one_that_is_not(kind: str) -> None:
    network = build(SHAPES[kind], backend="torch", dtype=torch.bfloat16)
    tokens, text = random_tokens(network.shape)[:, : PROMPT + 20].to("cuda"), random_text(network)
    eager, recorded = network.new_cache(1), network.new_cache(1)
    for cache in (eager, recorded):
        network.prefill(tokens[:, :PROMPT], cache, text=text)
    token, position = tokens[:, PROMPT : PROMPT + 1].clone(), torch.tensor(PROMPT, device=network.device)

    def step() -> Tensor:
        return network.decode(token, recorded, position=position, bucket=512, text=text)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()
    for place in range(PROMPT, PROMPT + 20):
        token.copy_(tokens[:, place : place + 1])
        position.fill_(place)
        graph.replay()
        expected = network.decode(token, eager, position=position, bucket=512, text=text)
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def bias_of(visible_L: Tensor) -> Tensor:
    return torch.zeros(len(visible_L), device="cuda").masked_fill(~visible_L, -torch.inf)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("length", [1024, 12800])
def test_one_token_attends_in_bfloat16_as_in_float64(batch: int, length: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    q = torch.randn(1, batch, 32, 128, device="cuda", generator=generator).bfloat16()
    k, v = torch.randn(2, length, batch, 8, 128, device="cuda", generator=generator).bfloat16()
    visible = torch.arange(length, device="cuda") < length - 100
    found = attend_with_one(3 * q, k, v, bias_L=bias_of(visible))
    grouped = (3 * q).double().view(batch, 8, 4, 128)
    scores = torch.einsum("bmgk,lbmk->bmgl", grouped, k.double()) * 128**-0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    exact = torch.einsum("bmgl,lbmk->bmgk", weights, v.double()).reshape(1, batch, 32, 128)
    assert relative(found.double(), exact) < 5e-3


def test_the_memory_of_one_tokens_attention_is_small_beside_the_keys() -> None:
    q = torch.zeros(1, 8, 32, 128, device="cuda", dtype=torch.bfloat16)
    k, v = torch.zeros(2, 12800, 8, 8, 128, device="cuda", dtype=torch.bfloat16)
    attend_with_one(q, k, v)  # cuBLAS takes its workspace
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend_with_one(q, k, v)
    assert torch.cuda.max_memory_allocated() - before < k.numel() * 2 / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["torch", "te"])
def test_reference_numbers_on_the_gpu(backend: str, dtype: str) -> None:
    flags = ["--device", "cuda", "--backend", backend, "--dtype", dtype]
    if dtype == "bfloat16":  # the likeliest token may be another one
        flags += ["--only", "logits", "--only", "hidden*", "--only", "layer0*"]
    assert tools(["verify", str(GOLDEN), *flags]) == 0


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("backend", ["torch", "te"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_read_by_the_kernels_is_read_as_by_the_layers(
    dtype: torch.dtype, backend: str, batch: int
) -> None:
    network = build(BASE, backend=backend, dtype=dtype)
    assert network.fuses_steps
    tokens = random_tokens(BASE, batch=batch)[:, : PROMPT + 80].to("cuda")
    caches = {fuses: network.new_cache(batch) for fuses in (True, False)}
    for cache in caches.values():
        network.prefill(tokens[:, :PROMPT], cache)
    # Transformer Engine multiplies float32 in TF32, for eight videos at least.
    limit = 3e-2 if dtype == torch.bfloat16 else 1e-3 if backend == "te" else 1e-5
    for place in range(PROMPT, PROMPT + 80):
        logits = {}
        for fuses, cache in caches.items():
            network.fuses_steps = fuses
            logits[fuses] = network.decode(
                tokens[:, place : place + 1],
                cache,
                position=torch.tensor(place, device="cuda"),
                bucket=512,
            )
        assert relative(logits[True], logits[False]) < limit
    for name in ("k", "v"):
        fused, plain = (getattr(caches[fuses], name) for fuses in (True, False))
        assert relative(fused.float(), plain.float()) < limit
        assert not fused[:, PROMPT + 80 :].any()


def test_the_products_of_one_video_are_those_of_linears_and_the_activation() -> None:
    from cosmos_nemo.models.token_transformer.one_token_kernels import multiply_and_gate, multiply_vector

    generator = torch.Generator("cuda").manual_seed(0)
    for inputs in (96, 2048, 4096, 5120, 14336):
        x = torch.randn(1, inputs, device="cuda", generator=generator).bfloat16()
        weight = torch.randn(2 * 1027, inputs, device="cuda", generator=generator).bfloat16() / inputs**0.5
        exact = x.double() @ weight.double().T
        assert relative(multiply_vector(x, weight).double(), exact) < 5e-3
        gate, value = exact.chunk(2, dim=-1)
        gated = torch.nn.functional.silu(gate) * value
        assert relative(multiply_and_gate(x, weight).double(), gated) < 1e-2


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("position", [0, 63, 64, 5000, 12799])
def test_the_kernel_attends_to_the_places_so_far_and_to_no_other(batch: int, position: int) -> None:
    from cosmos_nemo.models.token_transformer.one_token_kernels import attend_to_places

    generator = torch.Generator("cuda").manual_seed(0)
    q = 3 * torch.randn(batch, 32, 128, device="cuda", generator=generator).bfloat16()
    k, v = torch.randn(2, 12800, batch, 8, 128, device="cuda", generator=generator).bfloat16()
    count = position + 1
    for part in (k, v):
        part[count:] = torch.nan
    found = attend_to_places(q, k, v, torch.tensor(position, device="cuda"), 12800)
    scores = torch.einsum("bmgk,lbmk->bmgl", q.double().view(batch, 8, 4, 128), k[:count].double())
    weights = (scores * 128**-0.5).softmax(-1)
    exact = torch.einsum("bmgl,lbmk->bmgk", weights, v[:count].double()).reshape(batch, 32, 128)
    assert relative(found.double(), exact) < 5e-3
