import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.tools.checks import Options
from cosmos_nemo.tools.checks.predict2_solver import check
from cosmos_nemo.tools.checks.reference import ReferenceFileError

GOLDEN = Path(__file__).parents[3] / "golden" / "predict2_solver_a.safetensors"
OPTIONS = Options(
    folder=GOLDEN.parent,
    weights=None,
    backend="torch",
    dtype=torch.float32,
    device=torch.device("cpu"),
)


@pytest.fixture
def case() -> dict[str, Any]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def far_off(case: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    """The outputs that are not those of the reference."""
    made = dict(check(case, tensors, OPTIONS))
    return sorted(
        name for name, values in made.items() if not (values - tensors[f"outputs.{name}"]).abs().max() <= 1e-9
    )


def test_every_output_is_made_and_is_that_of_the_reference(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    made = dict(check(case, tensors, OPTIONS))
    assert {f"outputs.{name}" for name in made} == {name for name in tensors if name.startswith("outputs.")}
    assert all(values.dtype == torch.float64 for values in made.values())
    assert far_off(case, tensors) == []


SAMPLES = ["1euler_35", "1euler_4", "2ab_35", "2ab_4"]
SCHEDULES = ["sigmas_35", "sigmas_4"]


@pytest.mark.parametrize(
    ("change", "outputs"),
    [
        ({"sigma_min": 0.003}, SAMPLES + SCHEDULES),
        ({"sigma_max": 79.0}, SAMPLES + SCHEDULES),
        ({"rho": 6.0}, SAMPLES + SCHEDULES),
        ({"denoiser": "x0(x,s)=0.8*tanh(x/(1+s))+0.1*cos(s)"}, SAMPLES),
        ({"denoiser": "x0(x, s) = 0.9*tanh(x/(1+s)) - 1e-1*cos(s), s a number"}, SAMPLES),
    ],
)
def test_a_run_with_another_constant_is_another(
    change: dict[str, Any], outputs: list[str], case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    assert far_off(case | change, tensors) == outputs


@pytest.mark.parametrize("name", ["x", "x0_cur", "x0_prev", "sigma_prev_cur_next"])
def test_the_single_steps_use_what_the_file_gives_them(
    name: str, case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    tensors[f"inputs.step.{name}"] *= 1.01 if name != "sigma_prev_cur_next" else torch.tensor([1, 1, 0.9])
    only_2ab = name == "x0_prev"  # Euler's step has no history
    assert far_off(case, tensors) == (["step.ab2"] if only_2ab else ["step.ab2", "step.euler"])


def test_a_single_step_is_that_of_the_formula(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    x, clean, clean_before = (torch.tensor([value], dtype=torch.float64) for value in (4.0, 1.0, 3.0))
    tensors |= {"inputs.step.x": x, "inputs.step.x0_cur": clean, "inputs.step.x0_prev": clean_before}
    tensors["inputs.step.sigma_prev_cur_next"] = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    made = dict(check(case, tensors, OPTIONS))
    assert made["step.euler"].item() == pytest.approx(1 + (4 - 1) / 2)
    h = math.log(2)
    phi1 = (math.exp(-h) - 1) / -h
    phi2 = (phi1 - 1) / -h
    wanted = 4 / 2 + h * ((phi1 + phi2) * 1 - phi2 * 3)  # c2 is -1: the steps are equal
    assert made["step.ab2"].item() == pytest.approx(wanted)


def test_the_midpoint_solver_and_other_numbers_of_steps_are_made_if_the_file_has_them(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    case["steps"] = [6]
    tensors = {name: values for name, values in tensors.items() if name.startswith("inputs.x")}
    tensors["outputs.2mid_6"] = torch.zeros(())
    made = dict(check(case, tensors, OPTIONS))
    assert list(made) == ["sigmas_6", "2mid_6"]
    assert len(made["sigmas_6"]) == 7
    assert made["2mid_6"].shape == tensors["inputs.x_sigma_max"].shape


@pytest.mark.parametrize(
    "text",
    [
        "x0(x,s)=0.9*tanh(x/(2+s))+0.1*cos(s)",
        "x0(x,s)=0.9*sin(x/(1+s))+0.1*cos(s)",
        "x0(x,s)=0.9*tanh(x/(1+s))",
        "x0(x,s)=0.9*tanh(x/(1+s))+0.1*cos(s)+x",
        "",
    ],
)
def test_another_formula_is_refused_and_not_guessed(
    text: str, case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(ReferenceFileError, match="only formula known"):
        list(check(case | {"denoiser": text}, tensors, OPTIONS))
