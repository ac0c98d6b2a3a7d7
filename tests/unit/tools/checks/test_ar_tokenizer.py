import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.tools.checks.ar_tokenizer import check, tokenizer_shape

GOLDEN = Path(__file__).parents[3] / "golden" / "predict1_ar_tokenizer_small.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def case() -> dict[str, Any]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def errors(
    case: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    made = check(case, tensors, dtype=dtype, device=CPU)
    return {name: float((values.double() - tensors[f"outputs.{name}"]).abs().max()) for name, values in made}


def test_every_output_is_made_and_is_that_of_the_reference(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    found = errors(case, tensors)
    assert {f"outputs.{name}" for name in found} == {name for name in tensors if name.startswith("outputs.")}
    assert max(found.values()) <= 1e-4
    assert found["indices"] == found["indices_first_frame_only"] == 0


def test_in_bfloat16_videos_of_the_same_ids_are_near(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    for name, values in check(case, tensors, dtype=torch.bfloat16, device=CPU):
        if name.startswith(("decoded", "patched")):
            wanted = tensors[f"outputs.{name}"]
            assert (values - wanted).norm() <= 5e-2 * wanted.norm(), name


def test_the_sizes_are_those_of_the_file(case: dict[str, Any]) -> None:
    config = case["config"] | {"levels": [7, 3], "embedding_dim": 2, "channels": 5, "z_channels": 9}
    shape = tokenizer_shape(config)
    assert (shape.levels, shape.channels, shape.latent_channels, shape.num_res_blocks) == ((7, 3), 5, 9, 1)


def test_only_the_outputs_of_the_file_are_made(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del tensors["outputs.decoded_random"], tensors["inputs.random_indices"], tensors["outputs.patched_input"]
    tensors["outputs.of_another_kind"] = torch.zeros(1)
    assert errors(case, tensors).keys() == {
        "prequant",
        "codes",
        "indices",
        "indices_first_frame_only",
        "decoded",
    }


@pytest.mark.parametrize(
    ("weight", "wrong", "right"),
    [
        ("decoder.up.1.upsample.conv1.conv3d.bias", "decoded", "prequant"),
        ("post_quant_conv.conv3d.bias", "decoded_random", "prequant"),
        ("encoder.down.0.downsample.conv2.conv3d.bias", "prequant", "decoded"),
        ("quant_conv.conv3d.bias", "prequant", "decoded"),
    ],
)
def test_a_changed_weight_shows_in_its_part(
    weight: str, wrong: str, right: str, case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    tensors[f"weights.{weight}"] += 0.5
    found = errors(case, tensors)
    assert found[wrong] > 1e-2 and found[right] <= 1e-4


def test_a_missing_weight_is_named(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del tensors["weights.quant_conv.conv3d.bias"]
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors missing, first: quant_conv\.conv3d\.bias"):
        errors(case, tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"patch_method": "rearrange"},
        {"num_groups": 32},
        {"z_factor": 2},
        {"legacy_mode": True},
        {"embedding_dim": 8},
        {"attn_resolutions": [128]},
    ],
    ids=str,
)
def test_a_tokenizer_of_another_kind_is_refused(
    change: dict[str, Any], case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    case["config"] |= change
    with pytest.raises(ValueError, match=next(iter(change))):
        errors(case, tensors)
