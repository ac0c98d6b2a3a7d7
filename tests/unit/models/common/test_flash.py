"""Where FlashAttention 3 is taken and what it is given, by fakes of it; tests/gpu has the real one."""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.models.common import flash
from cosmos_nemo.models.common.attention import attend_by_torch, dot_product_attention

MODULES = ("flash_attn_3.flash_attn_interface", "flash_attn_interface", "fa3_fwd_interface")
"""As its setup.py installs it now, as it did before, and as the wheel fa3-fwd does."""

Install = Callable[..., None]


class OnCuda(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    flash.flash_attention_3.cache_clear()
    yield
    flash.flash_attention_3.cache_clear()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(name, source) makes a module importable; without a source it answers its own name."""
    tops = {name.partition(".")[0] for name in MODULES}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str | None = None) -> None:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source or f"def flash_attn_func(): return {name!r}\n")
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]


@pytest.mark.parametrize("name", MODULES)
def test_it_is_found_under_each_of_its_names(hopper: None, install: Install, name: str) -> None:
    install(name)
    found = flash.flash_attention_3()
    assert found is not None and found() == name


def test_the_newest_name_is_preferred(hopper: None, install: Install) -> None:
    for name in reversed(MODULES):
        install(name)
    found = flash.flash_attention_3()
    assert found is not None and found() == MODULES[0]


def test_it_is_looked_for_once(hopper: None, install: Install) -> None:
    install(MODULES[1])
    found = flash.flash_attention_3()
    install(MODULES[0])
    assert flash.flash_attention_3() is found


def test_there_is_none_where_none_is_installed(
    hopper: None, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    assert flash.flash_attention_3() is None
    assert not caplog.records


def test_there_is_none_without_cuda(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(MODULES[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert flash.flash_attention_3() is None


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_there_is_none_for_another_gpu_than_hopper(
    hopper: None, install: Install, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    install(MODULES[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert flash.flash_attention_3() is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise OSError('libcudart.so.12: cannot open')", "OSError: libcudart.so.12: cannot open"),
        ("raise ImportError('undefined symbol')", "ImportError: undefined symbol"),
        ("flash_attn_varlen_func = None", "AttributeError"),
    ],
)
@pytest.mark.parametrize("broken", MODULES)
def test_one_that_does_not_import_is_left_out_with_a_warning(
    hopper: None, install: Install, caplog: pytest.LogCaptureFixture, source: str, says: str, broken: str
) -> None:
    install(broken, source)
    with caplog.at_level(logging.WARNING):
        assert flash.flash_attention_3() is None
    (said,) = caplog.messages
    assert "does not import" in said and says in said


def test_after_one_that_does_not_import_the_next_is_taken(
    hopper: None, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install(MODULES[0], "raise OSError('built for another PyTorch')")
    install(MODULES[1])
    with caplog.at_level(logging.WARNING):
        found = flash.flash_attention_3()
    assert found is not None and found() == MODULES[1]
    assert len(caplog.records) == 1


class Flash:
    """flash_attn_func as far as we use it: attends, and remembers what it was given."""

    def __init__(self, *, answers_tuple: bool = False) -> None:
        self.answers_tuple = answers_tuple
        self.calls: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = []

    def __call__(self, *parts: Tensor, **scales: Any) -> Tensor | tuple[Tensor, Tensor]:
        self.calls.append((parts, scales))
        out = attend_by_torch(*(part.transpose(0, 1) for part in parts)).transpose(0, 1)
        return (out, torch.zeros(1)) if self.answers_tuple else out


@pytest.fixture(params=[False, True], ids=["a tensor", "a tuple"])
def flash_attn_func(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Flash:
    function = Flash(answers_tuple=request.param)
    monkeypatch.setattr(flash, "flash_attention_3", lambda: function)
    return function


def qkv(dtype: torch.dtype = torch.float32, *, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """5 queries, 7 keys, 2 videos, 3 heads, as views."""
    torch.manual_seed(0)
    q, k, v = torch.randn(7, 2, 3, 3, width).to(dtype).as_subclass(OnCuda).unbind(2)
    return q[:5], k, v


def test_it_is_given_batch_before_tokens_and_its_answer_is_turned_back(flash_attn_func: Flash) -> None:
    q, k, v = qkv()
    scales = {"q_descale": torch.ones(2, 3), "k_descale": torch.ones(2, 3), "v_descale": torch.ones(2, 3)}
    torch.testing.assert_close(flash.attend(q, k, v, **scales), attend_by_torch(q, k, v))
    ((parts, given),) = flash_attn_func.calls
    assert [part.shape for part in parts] == [(2, 5, 3, 16), (2, 7, 3, 16), (2, 7, 3, 16)]
    assert all(torch.equal(part, ours.transpose(0, 1)) for part, ours in zip(parts, (q, k, v), strict=True))
    assert given == scales


def test_a_bfloat16_call_has_no_descales(flash_attn_func: Flash) -> None:
    flash.attend(*qkv(torch.bfloat16))
    assert flash_attn_func.calls[0][1] == {}


def test_inference_in_bfloat16_on_a_gpu_takes_it_and_all_else_does_not(flash_attn_func: Flash) -> None:
    given = qkv(torch.bfloat16)
    exact = attend_by_torch(*given)
    dot_product_attention(*given)
    assert not flash_attn_func.calls
    with torch.inference_mode():
        found = dot_product_attention(*given)
    assert len(flash_attn_func.calls) == 1
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("width", [16, 64, 80, 128, 256])
def test_it_serves_inference_in_bfloat16_on_a_gpu(flash_attn_func: Flash, width: int) -> None:
    with torch.inference_mode():
        assert flash.serves(qkv(torch.bfloat16, width=width)[0])


@pytest.mark.parametrize("width", [8, 72, 120, 272, 512])
def test_it_serves_no_width_that_is_not_of_16_or_is_too_large(flash_attn_func: Flash, width: int) -> None:
    with torch.inference_mode():
        assert not flash.serves(qkv(torch.bfloat16, width=width)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_serves_no_other_dtype(flash_attn_func: Flash, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        assert not flash.serves(qkv(dtype)[0])


def test_it_serves_nothing_that_may_want_gradients(flash_attn_func: Flash) -> None:
    with torch.no_grad():
        assert not flash.serves(qkv(torch.bfloat16)[0])


def test_it_serves_no_cpu(flash_attn_func: Flash) -> None:
    with torch.inference_mode():
        assert not flash.serves(torch.zeros(5, 2, 3, 16, dtype=torch.bfloat16))


def test_it_serves_nothing_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "flash_attention_3", lambda: None)
    with torch.inference_mode():
        assert not flash.serves(qkv(torch.bfloat16)[0])


@pytest.mark.parametrize("error", ["OSError('libcudart.so.12: cannot open')", "ImportError('too old')"])
def test_a_broken_package_around_it_is_left_out_with_a_warning(
    hopper: None, install: Install, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    install(MODULES[0])
    install("flash_attn_3.__init__", f"raise {error}")
    with caplog.at_level(logging.WARNING):
        assert flash.flash_attention_3() is None
    assert error.partition("(")[0] in caplog.text


def test_a_package_with_its_kernels_alone_is_no_broken_one(
    hopper: None, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    """As setup.py leaves it that puts the interface beside the package."""
    install("flash_attn_3.__init__", "pass")
    install(MODULES[1])
    with caplog.at_level(logging.WARNING):
        found = flash.flash_attention_3()
    assert found is not None and found() == MODULES[1]
    assert not caplog.records
