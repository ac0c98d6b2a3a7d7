from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.tools.checks import Options
from cosmos_nemo.tools.checks.ar_sampling import check

OPTIONS = Options(
    folder=Path(), weights=None, backend="torch", dtype=torch.float32, device=torch.device("cpu")
)
# Only the last position counts: the first one's logits would draw token 0.
LOGITS = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 1.0, 2.0]]])


def checked(one: dict[str, Any], **inputs: Tensor) -> dict[str, Tensor]:
    tensors = {f"inputs.case0.{name}": tensor for name, tensor in {"logits": LOGITS, **inputs}.items()}
    wanted = {"outputs.case0.token": torch.zeros(1, 1), "outputs.case0.probs": torch.zeros(1, 3)}
    return dict(check({"cases": [one]}, tensors | wanted, OPTIONS))


def test_top_p_takes_numbers_in_sorted_order_and_top_k_in_the_vocabularys() -> None:
    first_is_least = torch.tensor([[1e-9, 1.0, 1.0]])
    of_p = checked({"temperature": 1.0, "top_p": 0.9}, exponential_noise_in_sorted_order=first_is_least)
    assert of_p["case0.token"].tolist() == [[2]]
    of_k = checked({"temperature": 1.0, "top_k": None}, exponential_noise_in_vocab_order=first_is_least)
    assert of_k["case0.token"].tolist() == [[0]]
    assert of_k["case0.probs"].sum() == pytest.approx(1) and of_p["case0.probs"][0, 0] == 0


def test_temperature_0_needs_no_numbers_and_everything_else_does() -> None:
    assert checked({"temperature": 0.0, "top_p": 0.9})["case0.token"].tolist() == [[2]]
    with pytest.raises(KeyError, match="exponential_noise_in_sorted_order"):
        checked({"temperature": 1.0, "top_p": 0.9})


def test_a_case_that_asks_for_both_is_refused() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        checked({"temperature": 1.0, "top_p": 0.9, "top_k": 2})
