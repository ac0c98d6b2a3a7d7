import logging

import pytest

from cosmos_nemo.models.common import backend
from cosmos_nemo.models.common.backend import BackendError, choose_backend, torch_backend


def test_auto_is_torch_where_transformer_engine_is_missing_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_backend("auto", {}).name == "torch"
    assert "back end torch: Transformer Engine needs a CUDA device" in caplog.text


def test_asking_for_te_where_it_is_missing_is_refused_with_the_way_out() -> None:
    with pytest.raises(BackendError, match=r"--backend te cannot run here: .* Pass --backend torch"):
        choose_backend("te", {})


@pytest.mark.parametrize(
    ("asked", "environ", "chosen"),
    [
        ("auto", {}, "te"),
        ("auto", {"NVTE_FUSED_ATTN": "1"}, "te"),
        ("auto", {"NVTE_FUSED_ATTN": "0"}, "torch"),
        ("te", {"NVTE_FUSED_ATTN": "0"}, "te"),
        ("torch", {}, "torch"),
    ],
)
def test_where_te_imports_auto_takes_it_unless_its_fused_attention_is_off(
    asked: str, environ: dict[str, str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    te = object.__new__(type(torch_backend()))
    object.__setattr__(te, "name", "te")
    monkeypatch.setattr(backend, "te_missing", lambda: None)
    monkeypatch.setattr(backend, "te_backend", lambda: te)
    assert choose_backend(asked, environ).name == chosen
