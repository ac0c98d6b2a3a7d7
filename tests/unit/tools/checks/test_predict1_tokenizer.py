import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.tools.checks.predict1_tokenizer import check

GOLDEN = Path(__file__).parents[3] / "golden" / "predict1_tokenizer_tiny.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def case() -> dict[str, Any]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def test_every_output_is_made_and_is_that_of_the_reference(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    made = dict(check(case, tensors, dtype=torch.float32, device=CPU))
    assert {f"outputs.{name}" for name in made} == {name for name in tensors if name.startswith("outputs.")}
    for name, values in made.items():
        assert (values - tensors[f"outputs.{name}"]).abs().max() <= 1e-4, name


def test_bfloat16_is_within_two_percent(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, values in check(case, tensors, dtype=torch.bfloat16, device=CPU):
        wanted = tensors[f"outputs.{name}"]
        assert (values - wanted).norm() <= 2e-2 * wanted.norm(), name


def test_a_reference_without_statistics_has_no_normalised_outputs(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    left = {name: values for name, values in tensors.items() if "latent_mean" not in name}
    made = dict(check(case, left, dtype=torch.float32, device=CPU))
    assert sorted(made) == [f"{kind}_t{frames}" for kind in ("decoded", "latent") for frames in (1, 17, 9)]


def test_a_changed_weight_shows(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["weights.decoder.up.1.upsample.conv1.conv3d.bias"] += 0.1
    made = dict(check(case, tensors, dtype=torch.float32, device=CPU))
    assert (made["decoded_t9"] - tensors["outputs.decoded_t9"]).abs().max() > 1e-2
    assert (made["latent_t9"] - tensors["outputs.latent_t9"]).abs().max() < 1e-4


def test_a_missing_weight_is_named(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del tensors["weights.quant_conv.conv3d.bias"]
    with pytest.raises(CheckpointError, match=r"1 of 310 tensors missing, first: quant_conv\.conv3d\.bias"):
        list(check(case, tensors, dtype=torch.float32, device=CPU))


@pytest.mark.parametrize("change", [{"patch_method": "rearrange"}, {"num_groups": 32}, {"z_channels": 8}])
def test_a_tokenizer_of_another_kind_is_refused(
    change: dict[str, Any], case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    case["config"] |= change
    with pytest.raises(ValueError, match=next(iter(change))):
        list(check(case, tensors, dtype=torch.float32, device=CPU))
