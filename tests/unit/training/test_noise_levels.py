import math

import numpy
import pytest
import torch

from cosmos_nemo.training.noise_levels import HIGH, NoiseLevels

COUNT = 40_000


def drawn(levels: NoiseLevels) -> torch.Tensor:
    return levels.sigma_of(torch.randn(COUNT, generator=torch.Generator().manual_seed(0)))


def distance(sample: torch.Tensor, quantiles: numpy.ndarray) -> float:
    """Kolmogorov-Smirnov, times the root of the size: below 1.63 in 99 of 100 cases."""
    steps = (numpy.arange(len(sample)) + 0.5) / len(sample)
    return float(numpy.abs(numpy.sort(quantiles) - steps).max() * math.sqrt(len(sample)))


def test_without_a_high_share_ln_sigma_is_the_number_itself() -> None:
    unit = torch.tensor([-3.0, 0.0, 2.5])
    assert torch.equal(NoiseLevels(mean=0.5, std=2.0).sigma_of(unit), (0.5 + 2.0 * unit).exp())


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_the_high_share_is_uniform_in_ln_sigma_and_the_others_stay_normal(share: float) -> None:
    sigma = drawn(NoiseLevels(mean=1.6, std=1.0, high_share=share))
    assert sigma.dtype == torch.float32
    low, high = (math.log(bound) for bound in HIGH)
    # A normal level above 200 has a probability of 1e-4.
    is_high = sigma > HIGH[0]
    assert float(is_high.float().mean()) == pytest.approx(share, abs=4 * math.sqrt(share / COUNT))
    assert sigma.max() <= HIGH[1] * 1.0001
    assert distance(sigma[is_high], (sigma[is_high].log().numpy() - low) / (high - low)) < 1.8
    usual = (sigma[~is_high].log() - 1.6).double()
    assert distance(usual, torch.special.ndtr(usual).numpy()) < 1.8


def test_a_level_rises_with_its_number_and_the_extremes_have_one() -> None:
    levels = NoiseLevels(mean=1.0, std=1.0, high_share=0.05)
    sigma = levels.sigma_of(torch.linspace(-6, 6, 4001))
    assert (sigma.diff() >= 0).all() and (sigma.diff()[:3500] > 0).all()
    extremes = levels.sigma_of(torch.tensor([-40.0, 40.0]))
    assert extremes.isfinite().all() and float(extremes[1]) == pytest.approx(HIGH[1], rel=1e-4)


def test_it_says_what_it_is() -> None:
    assert str(NoiseLevels(mean=0, std=1)) == "ln(sigma) from N(0, 1)"
    said = str(NoiseLevels(mean=math.log(24) / 2, std=1, high_share=0.05))
    assert said == "ln(sigma) from N(1.59, 1), 5 % of the samples from 200 to 100,000"
