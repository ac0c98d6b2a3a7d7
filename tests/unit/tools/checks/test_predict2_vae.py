import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.tools.checks.predict2_vae import check, tokenizer_shape

GOLDEN = Path(__file__).parents[3] / "golden" / "predict2_vae_a.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def case() -> dict[str, Any]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def largest_errors(case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, float]:
    made = check(case, tensors, dtype=torch.float32, device=CPU)
    return {name: float((values - tensors[f"outputs.{name}"]).abs().max()) for name, values in made}


def test_every_output_is_made_and_is_that_of_the_reference(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    errors = largest_errors(case, tensors)
    assert {f"outputs.{name}" for name in errors} == {name for name in tensors if name.startswith("outputs.")}
    assert max(errors.values()) <= 1e-4


def test_bfloat16_is_near(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, values in check(case, tensors, dtype=torch.bfloat16, device=CPU):
        wanted = tensors[f"outputs.{name}"]
        assert (values - wanted).norm() <= 5e-2 * wanted.norm(), name


def test_the_sizes_are_those_of_the_file(case: dict[str, Any]) -> None:
    case |= {"dim": 6, "dim_mult": [1, 2, 2], "temporal_downsample": [True, False], "z_dim": 8}
    shape = tokenizer_shape(case)
    assert (shape.channels, shape.latent_channels, shape.num_res_blocks) == (6, 8, 2)
    assert (shape.spatial_compression, shape.temporal_compression) == (4, 2)


def test_only_the_outputs_of_the_file_are_made_and_any_window_among_them(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    tensors["outputs.latent_of_video_window8"] = tensors.pop("outputs.latent_of_video_window16")
    tensors["outputs.of_another_kind"] = torch.zeros(1)
    del tensors["outputs.video_of_latent"]
    errors = largest_errors(case, tensors)
    assert "video_of_latent" not in errors and "of_another_kind" not in errors
    assert errors["latent_of_video_window8"] <= 1e-4


def test_a_changed_weight_shows(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["weights.decoder.upsamples.7.time_conv.bias"] += 0.1
    errors = largest_errors(case, tensors)
    # A first latent frame makes one frame and has no part in what doubles the frames.
    wrong = {name for name, error in errors.items() if error > 1e-4}
    assert wrong == {"video_of_latent", "video_of_latent_of_video"}


def test_other_statistics_show(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["inputs.latents_std"] *= 1.01
    assert min(largest_errors(case, tensors).values()) > 1e-4


def test_a_missing_weight_is_named(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del tensors["weights.conv1.bias"]
    with pytest.raises(CheckpointError, match=r"1 of 194 tensors missing, first: conv1\.bias"):
        list(check(case, tensors, dtype=torch.float32, device=CPU))


@pytest.mark.parametrize("change", [{"attn_scales": [0.5]}, {"is_residual": True}])
def test_a_tokenizer_of_another_kind_is_refused(
    change: dict[str, Any], case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        list(check(case | change, tensors, dtype=torch.float32, device=CPU))
