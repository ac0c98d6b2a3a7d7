import math

import pytest
import torch

from cosmos_nemo.sampling.scaling import edm_scaling


def test_coefficients_are_those_of_the_paper():
    scaling = edm_scaling(torch.tensor(2.0, dtype=torch.float64), sigma_data=0.5)
    assert scaling.c_skip.item() == pytest.approx(0.25 / 4.25)
    assert scaling.c_out.item() == pytest.approx(2 * 0.5 / math.sqrt(4.25))
    assert scaling.c_in.item() == pytest.approx(1 / math.sqrt(4.25))
    assert scaling.c_noise.item() == pytest.approx(math.log(2) / 4)


def test_the_network_sees_unit_variance_at_every_level():
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    scaling = edm_scaling(sigma, sigma_data=0.5)
    torch.testing.assert_close(scaling.c_in**2 * (sigma**2 + 0.25), torch.ones_like(sigma))


def test_target_of_the_network_has_unit_variance_at_every_level():
    # x = x0 + sigma n; F = (x0 - c_skip x) / c_out has variance 1 for x0 of variance sigma_data^2.
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    scaling = edm_scaling(sigma, sigma_data=0.5)
    variance = ((1 - scaling.c_skip) ** 2 * 0.25 + scaling.c_skip**2 * sigma**2) / scaling.c_out**2
    torch.testing.assert_close(variance, torch.ones_like(sigma))


def test_coefficients_have_the_shape_and_dtype_of_sigma():
    scaling = edm_scaling(torch.ones(3, 1, 1), sigma_data=0.5)
    for value in (scaling.c_skip, scaling.c_out, scaling.c_in, scaling.c_noise):
        assert value.shape == (3, 1, 1)
        assert value.dtype == torch.float32
