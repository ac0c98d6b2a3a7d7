import pytest
import torch

from cosmos_nemo.sampling.schedule import euler_sigmas, karras_sigmas, res_sigmas

RES = {"sigma_max": 80.0, "sigma_min": 0.002, "rho": 7.0}
EULER = {"sigma_max": 80.0, "sigma_min": 0.0002, "rho": 7.0}


def test_res_table_of_35_steps_has_the_36_values_of_the_spec():
    sigmas = res_sigmas(35, order=1, **RES)
    assert sigmas.dtype == torch.float64
    assert len(sigmas) == 36
    assert sigmas[:3].tolist() == pytest.approx([80, 68.325060, 58.142068], abs=1e-6)
    assert sigmas[-3:].tolist() == pytest.approx([0.007272, 0.003929, 0.002], abs=1e-6)


def test_two_calls_per_interval_halve_the_intervals_and_drop_a_remainder():
    assert len(res_sigmas(10, order=2, **RES)) == 6
    assert torch.equal(res_sigmas(11, order=2, **RES), res_sigmas(10, order=2, **RES))


def test_euler_table_of_35_steps_has_the_values_of_the_spec_and_ends_at_zero():
    sigmas = euler_sigmas(35, **EULER)
    assert len(sigmas) == 36
    assert sigmas[:3].tolist() == pytest.approx([80, 67.126017, 56.070267], rel=1e-7)
    assert sigmas[-4:].tolist() == pytest.approx([0.001342, 0.000553, 0.0002, 0], abs=1e-6)


def test_euler_levels_are_float32_values():
    sigmas = euler_sigmas(35, **EULER)
    assert torch.equal(sigmas, sigmas.float().double())
    assert sigmas[-2] != 0.0002


def test_one_euler_step_goes_from_the_top_straight_to_zero():
    assert euler_sigmas(1, **EULER).tolist() == [80.0, 0.0]


@pytest.mark.parametrize("num_steps", [0, -3])
def test_less_than_one_step_is_refused(num_steps):
    with pytest.raises(ValueError, match=f"num_steps {num_steps}"):
        res_sigmas(num_steps, order=1, **RES)
    with pytest.raises(ValueError, match=f"num_steps {num_steps}"):
        euler_sigmas(num_steps, **EULER)


def test_a_two_call_solver_refuses_one_step_because_no_interval_is_left():
    with pytest.raises(ValueError, match="Ask for 2 or more"):
        res_sigmas(1, order=2, **RES)


@pytest.mark.parametrize(
    ("sigma_max", "sigma_min"),
    [(1.0, 1.0), (0.1, 1.0), (80.0, 0.0), (80.0, -1.0), (float("inf"), 1.0), (float("nan"), 1.0)],
)
def test_levels_that_would_not_fall_are_refused(sigma_max, sigma_min):
    with pytest.raises(ValueError, match="do not fall"):
        karras_sigmas(5, sigma_max=sigma_max, sigma_min=sigma_min)


@pytest.mark.parametrize("rho", [0.0, -7.0, float("nan")])
def test_a_rho_that_is_not_positive_is_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        karras_sigmas(5, sigma_max=80.0, sigma_min=0.002, rho=rho)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="0 noise levels"):
        karras_sigmas(0, sigma_max=80.0, sigma_min=0.002)
