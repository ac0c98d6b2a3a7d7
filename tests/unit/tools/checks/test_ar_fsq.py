import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.tools.checks.ar_fsq import check

GOLDEN = Path(__file__).parents[3] / "golden" / "predict1_ar_fsq.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def case() -> dict[str, Any]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def errors(case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, float]:
    made = check(case, tensors, device=CPU)
    return {name: float((values.double() - tensors[f"outputs.{name}"]).abs().max()) for name, values in made}


def test_every_output_is_made_and_is_that_of_the_reference(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    found = errors(case, tensors)
    assert {f"outputs.{name}" for name in found} == {name for name in tensors if name.startswith("outputs.")}
    assert max(found.values()) <= 1e-6


def test_only_the_outputs_of_the_file_are_made_and_the_codebook_as_long_as_it_is(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    tensors["outputs.implicit_codebook_head"] = tensors["outputs.implicit_codebook_head"][:10]
    del tensors["outputs.bounded"], tensors["inputs.some_indices"], tensors["outputs.some_codes"]
    found = errors(case, tensors)
    assert "bounded" not in found and "some_codes" not in found
    assert found["implicit_codebook_head"] == 0


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 7], [5, 5, 5, 8, 8, 8]])
def test_other_levels_show(levels: list[int], case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    found = errors(case | {"levels": levels}, tensors)
    assert found["indices"] > 0 and found["some_codes"] > 0 and found["bounded"] > 1e-2


def test_levels_that_cannot_be_are_refused(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="levels"):
        errors(case | {"levels": [8, 1]}, tensors)
