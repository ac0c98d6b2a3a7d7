"""Which back end is taken, and what Transformer Engine is asked to do, with fakes in its place."""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from cosmos_nemo.models.common import backend, fp8
from cosmos_nemo.models.common.attention import TorchAttention, TorchRMSNorm, dot_product_attention
from cosmos_nemo.models.common.backend import (
    TEAttention,
    TERMSNorm,
    TokenBlocks,
    choose_backend,
    te_backend,
    torch_backend,
)
from cosmos_nemo.models.common.missing import BackendError, te_missing
from tests.fakes import FakeGroup


@pytest.fixture(autouse=True)
def _no_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has; a test may say otherwise."""
    monkeypatch.setattr(backend, "flash_attention_3", lambda: None)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def flash_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "flash_attention_3", lambda: print)


@pytest.fixture
def te_works(monkeypatch: pytest.MonkeyPatch) -> None:
    te = backend.Backend(
        name="te",
        column_linear=object,
        row_linear=object,
        rms_norm=TERMSNorm,
        attention=TEAttention,
        meta_config={},
    )
    monkeypatch.setattr(backend, "te_missing", lambda: None)
    monkeypatch.setattr(backend, "te_backend", lambda: te)


def chosen(asked: str, caplog: pytest.LogCaptureFixture, **environ: str) -> tuple[str, str]:
    """The back end's name and what the log says."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    return choose_backend(asked, environ).name, caplog.text


def test_the_torch_back_end_is_megatrons_linears_with_torchs_norm_and_attention() -> None:
    made = torch_backend()
    assert (made.name, made.column_linear, made.row_linear) == (
        "torch",
        ColumnParallelLinear,
        RowParallelLinear,
    )
    assert (made.rms_norm, made.attention) == (TorchRMSNorm, TorchAttention)


def test_auto_without_cuda_takes_torch_and_logs_why(no_cuda: None, caplog: pytest.LogCaptureFixture) -> None:
    name, log = chosen("auto", caplog)
    assert name == "torch"
    assert "back end torch: Transformer Engine needs a CUDA device" in log


def test_te_without_cuda_is_refused_by_flag_with_the_way_out(no_cuda: None) -> None:
    with pytest.raises(BackendError) as refused:
        choose_backend("te", {})
    assert str(refused.value) == (
        "--backend te cannot run here: Transformer Engine needs a CUDA device. Pass --backend torch."
    )
    assert isinstance(refused.value, ValueError)


def test_auto_takes_te_where_it_imports(te_works: None, caplog: pytest.LogCaptureFixture) -> None:
    name, log = chosen("auto", caplog)
    assert name == "te"
    assert "back end te: Transformer Engine imports" in log


def test_nvte_fused_attn_0_makes_auto_take_torch_though_te_works(
    te_works: None, caplog: pytest.LogCaptureFixture
) -> None:
    name, log = chosen("auto", caplog, NVTE_FUSED_ATTN="0")
    assert name == "torch"
    assert "NVTE_FUSED_ATTN=0" in log


@pytest.mark.parametrize("value", ["1", ""])
def test_other_values_of_nvte_fused_attn_leave_te(
    te_works: None, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    assert chosen("auto", caplog, NVTE_FUSED_ATTN=value)[0] == "te"


@pytest.mark.parametrize("asked", ["te", "torch"])
def test_what_is_asked_for_is_taken_whatever_the_environment_says(
    te_works: None, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    for environ in ({}, {"NVTE_FUSED_ATTN": "0"}):
        name, log = chosen(asked, caplog, **environ)
        assert name == asked
        assert f"back end {asked}: asked for" in log


def test_auto_takes_torch_where_flash_attention_3_is_installed_though_te_works(
    te_works: None, flash_works: None, caplog: pytest.LogCaptureFixture
) -> None:
    name, log = chosen("auto", caplog)
    assert name == "torch"
    assert "back end torch: FlashAttention 3 is installed" in log


def test_te_that_is_asked_for_is_taken_where_flash_attention_3_is_installed_too(
    te_works: None, flash_works: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert chosen("te", caplog)[0] == "te"


def test_a_back_end_without_8_bits_has_the_same_blocks_for_the_videos_tokens_as_elsewhere() -> None:
    made = torch_backend()
    assert made.precision == "bf16"
    assert made.tokens == TokenBlocks(made.column_linear, made.row_linear, made.attention)


@pytest.mark.parametrize("asked", ["auto", "torch"])
@pytest.mark.parametrize("environ", [{}, {"NVTE_FUSED_ATTN": "0"}])
def test_fp8_is_the_torch_back_end_with_8_bits_where_the_videos_tokens_pass(
    te_works: None, monkeypatch: pytest.MonkeyPatch, asked: str, environ: dict[str, str]
) -> None:
    monkeypatch.setattr(fp8, "fp8_missing", lambda: None)
    found = choose_backend(asked, environ, precision="fp8")
    assert (found.name, found.precision) == ("torch", "fp8")
    assert found.tokens == TokenBlocks(
        fp8.FP8ColumnParallelLinear, fp8.FP8RowParallelLinear, fp8.FP8Attention, mlp=fp8.FP8MLP
    )
    elsewhere = (found.column_linear, found.row_linear, found.rms_norm, found.attention)
    assert elsewhere == (ColumnParallelLinear, RowParallelLinear, TorchRMSNorm, TorchAttention)


def test_fp8_on_a_cpu_is_taken_with_a_warning(no_cuda: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_backend("auto", {}, precision="fp8").precision == "fp8"
    assert caplog.messages == ["--precision fp8 on a CPU: rounded as on a GPU, but slower than without"]


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_fp8_on_a_gpu_with_8_bits_is_taken_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with caplog.at_level(logging.WARNING):
        assert choose_backend("auto", {}, precision="fp8").precision == "fp8"
    assert not caplog.records


@pytest.mark.parametrize("asked", ["auto", "torch"])
def test_fp8_on_an_old_gpu_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    with pytest.raises(BackendError) as refused:
        choose_backend(asked, {}, precision="fp8")
    assert str(refused.value) == (
        "--precision fp8 cannot run here: 8 bits take a GPU from Ada or Hopper on, and NVIDIA A100 is older. "
        "Pass --precision bf16."
    )


def test_fp8_and_te_exclude_each_other(te_works: None) -> None:
    with pytest.raises(BackendError) as refused:
        choose_backend("te", {}, precision="fp8")
    assert str(refused.value) == (
        "--precision fp8 brings matrix products of its own, in place of those of --backend te. "
        "Leave out one of them."
    )


Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a transformer_engine whose .pytorch is the given source, where CUDA seems to be."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    installed = [name for name in sys.modules if name.partition(".")[0] == "transformer_engine"]
    for name in installed:
        monkeypatch.delitem(sys.modules, name)

    def write(source: str) -> None:
        package = tmp_path / "transformer_engine"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "pytorch.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    yield write
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        sys.modules.pop(name, None)


def test_te_is_missing_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert te_missing() == "the package transformer_engine is not installed"


def test_te_that_imports_is_not_missing(install: Install) -> None:
    install("")
    assert te_missing() is None


@pytest.mark.parametrize("raised", ["OSError('no libcudnn')", "AssertionError('no libcudnn')"])
def test_a_broken_te_is_missing_for_the_reason_its_import_gives(install: Install, raised: str) -> None:
    install(f"raise {raised}")
    kind = raised.partition("(")[0]
    assert te_missing() == f"transformer_engine does not import ({kind}: no libcudnn)"
    with pytest.raises(BackendError, match=f"{kind}: no libcudnn"):
        te_backend()


class FakeAttention(nn.Module):
    """te.DotProductAttention as far as we use it: answers [S, B, N K] and remembers what it was told."""

    made: list["FakeAttention"] = []  # noqa: RUF012

    def __init__(self, *sizes: int, **options: object) -> None:
        super().__init__()
        self.sizes, self.options, self.calls = sizes, options, 0
        self.context: tuple[Any, ...] = ()
        FakeAttention.made.append(self)

    def set_context_parallel_group(self, *context: Any) -> None:
        self.context = context

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.is_contiguous() and k.is_contiguous() and v.is_contiguous()
        self.calls += 1
        return dot_product_attention(q, k, v).flatten(2)


@pytest.fixture
def fake_te(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    te: Any = ModuleType("transformer_engine.pytorch")
    te.DotProductAttention = FakeAttention
    te.RMSNorm = lambda *args, **options: (args, options)
    package: Any = ModuleType("transformer_engine")
    package.pytorch = te
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", te)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "stream")
    monkeypatch.setattr(backend, "get_process_group_ranks", lambda group: list(range(group.size())))
    FakeAttention.made.clear()
    return te


def qkv(*, tokens: int, keys: int, heads: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(length, 2, 8, heads).transpose(2, 3) for length in (tokens, keys, keys)]


def test_te_attention_to_the_text_is_one_unmasked_call(fake_te: ModuleType) -> None:
    core = TEAttention(num_heads=4, head_dim=8, cp=None)
    q, k, v = qkv(tokens=5, keys=3, heads=4)
    torch.testing.assert_close(core(q, k, v, 5), dot_product_attention(q, k, v))
    (made,) = FakeAttention.made
    assert made.sizes == (4, 8)
    assert made.options == {"attention_dropout": 0.0, "qkv_format": "sbhd", "attn_mask_type": "no_mask"}


def test_te_attention_on_one_rank_needs_no_ring(fake_te: ModuleType) -> None:
    core = TEAttention(num_heads=3, head_dim=8, cp=FakeGroup(1, 0), prefer_ring=True)  # type: ignore[arg-type]
    q, k, v = qkv(tokens=5, keys=5, heads=3)
    torch.testing.assert_close(core(q, k, v, 5), dot_product_attention(q, k, v))
    assert core.ring is None and len(FakeAttention.made) == 1


def test_te_attention_splits_heads_that_divide_and_has_an_attention_for_each_number_of_heads(
    fake_te: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(backend, "attend_in_context", lambda *args: asked.append(args) or args[1])
    group: Any = FakeGroup(2, 0)
    core = TEAttention(num_heads=4, head_dim=8, cp=group)
    assert core.ring is None
    assert sorted(made.sizes for made in FakeAttention.made) == [(2, 8), (4, 8)]
    q, k, v = qkv(tokens=6, keys=6, heads=4)
    assert core(q, k, v, 12) is q
    ((attend, *rest),) = asked
    assert rest[0] is q and rest[1] is k and rest[2] is v and rest[3:] == [group, 12]
    half = qkv(tokens=12, keys=12, heads=2)
    torch.testing.assert_close(attend(*half), dot_product_attention(*half))


@pytest.mark.parametrize(
    ("tokens", "num_tokens", "ring"),
    [(6, 12, True), (6, 11, False), (5, 10, False)],
    ids=["even", "padded", "odd"],
)
@pytest.mark.parametrize(("heads", "prefers"), [(3, False), (4, True)])
def test_te_attention_takes_the_ring_where_heads_do_not_divide_and_it_can(
    fake_te: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    num_tokens: int,
    ring: bool,
    heads: int,
    prefers: bool,
) -> None:
    monkeypatch.setattr(backend, "attend_in_context", lambda *args: args[1])
    group: Any = FakeGroup(2, 0)
    core = TEAttention(num_heads=heads, head_dim=8, cp=group, prefer_ring=prefers)
    assert core.ring.context == (group, [0, 1], "stream", "p2p")
    q, k, v = qkv(tokens=tokens, keys=tokens, heads=heads)
    out = core(q, k, v, num_tokens)
    assert core.ring.calls == int(ring)
    assert ring or out is q


def test_tes_norm_is_built_on_meta_with_our_epsilon(fake_te: ModuleType) -> None:
    made: Any = TERMSNorm(hidden_size=8, eps=1e-6, dtype=torch.bfloat16)
    assert made == ((8,), {"eps": 1e-6, "params_dtype": torch.bfloat16, "device": "meta"})
