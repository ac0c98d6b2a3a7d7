"""Given frames, against numbers computed by hand from spec/predict1-diffusion.md 5.2."""

import math

import pytest
import torch
from torch import Tensor

from cosmos_nemo.sampling.given import DrawnCorruption, FixedCorruption, GivenDenoiser, GivenFrames
from cosmos_nemo.sampling.samplers import SAMPLERS

SIGMA_DATA = 0.5
SHAPE = (1, 2, 3, 2, 2)
LATENT = torch.linspace(-1, 1, 24).view(SHAPE)
NOISE = torch.linspace(3, -2, 24).view(SHAPE)
FIRST, LAST_TOO = torch.tensor([True, False, False]), torch.tensor([True, False, True])


class Constant:
    """A denoiser whose answer is always 7, and that remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.shown.append(x)
        return torch.full_like(x, 7.0)

    def given(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x


def frames(is_given: Tensor = FIRST, *, level: float = 0.001) -> GivenFrames:
    return GivenFrames(LATENT, is_given, FixedCorruption(NOISE, level))


@pytest.mark.parametrize("is_given", [FIRST, LAST_TOO])
def test_given_frames_are_shown_with_little_noise_and_come_back_clean(is_given: Tensor) -> None:
    inner, x = Constant(), torch.full(SHAPE, 20.0)
    clean = GivenDenoiser(inner, frames(is_given), SIGMA_DATA)(x, torch.tensor(4.0))
    scale = math.sqrt(4.0**2 + 0.25) / math.sqrt(0.001**2 + 0.25)
    [shown] = inner.shown
    torch.testing.assert_close(shown[:, :, is_given], (LATENT + 0.001 * NOISE)[:, :, is_given] * scale)
    assert (shown[:, :, ~is_given] == 20).all()
    assert torch.equal(clean[:, :, is_given], LATENT[:, :, is_given])
    assert (clean[:, :, ~is_given] == 7).all()


def test_a_step_starts_from_what_the_network_was_shown() -> None:
    inner, x, sigma = Constant(), torch.full(SHAPE, 20.0), torch.tensor(4.0)
    denoise = GivenDenoiser(inner, frames(), SIGMA_DATA)
    denoise(x, sigma)
    assert torch.equal(denoise.given(x, sigma), inner.shown[0])


@pytest.mark.parametrize(("sigma", "is_shown"), [(0.0011, True), (0.001, False), (0.0005, False)])
def test_a_sample_with_less_noise_than_the_given_frames_is_on_its_own(sigma: float, is_shown: bool) -> None:
    inner, x = Constant(), torch.full(SHAPE, 20.0)
    clean = GivenDenoiser(inner, frames(), SIGMA_DATA)(x, torch.tensor(sigma, dtype=torch.float64))
    assert bool((inner.shown[0][:, :, 0] != 20).all()) is is_shown
    assert torch.equal(clean[:, :, 0], LATENT[:, :, 0]) is is_shown


@pytest.mark.parametrize("sampler", ["RES", "EDM"])
def test_a_whole_sample_keeps_the_given_frames(sampler: str) -> None:
    denoise = GivenDenoiser(Constant(), frames(LAST_TOO), SIGMA_DATA)
    x0 = SAMPLERS[sampler].sample(denoise, torch.ones(SHAPE), num_steps=10)
    # The last steps of EDM, below the given frames' noise, go on from them to the network's own answer.
    tolerance = 0 if sampler == "RES" else 10
    assert (x0 - LATENT)[:, :, LAST_TOO].abs().max() <= tolerance
    torch.testing.assert_close(x0[:, :, 1], torch.full_like(x0[:, :, 1], 7.0))


def test_the_mask_is_one_on_given_frames_and_has_the_latents_rows_and_columns() -> None:
    mask = frames(LAST_TOO).mask_B1THW
    assert mask.shape == (1, 1, 3, 2, 2)
    assert mask[0, 0, :, 0, 0].tolist() == [1, 0, 1] and mask.dtype == LATENT.dtype


def drawn(seed: int) -> DrawnCorruption:
    return DrawnCorruption(torch.Size(SHAPE), torch.Generator().manual_seed(seed))


def test_drawn_noise_differs_from_call_to_call_and_not_from_run_to_run() -> None:
    def shown(seed: int) -> list[Tensor]:
        inner = Constant()
        denoise = GivenDenoiser(inner, GivenFrames(LATENT, FIRST, drawn(seed)), SIGMA_DATA)
        for _ in range(2):
            denoise(torch.full(SHAPE, 20.0), torch.tensor(4.0))
        return inner.shown

    first, second = shown(1)
    assert not torch.equal(first[:, :, 0], second[:, :, 0])
    assert all(map(torch.equal, (first, second), shown(1)))
    assert not torch.equal(first, shown(2)[0])


def test_drawn_levels_are_those_of_training() -> None:
    corruption = drawn(3)
    logs = torch.tensor([math.log(corruption.draw()[0]) for _ in range(4000)])
    assert abs(logs.mean() + 3) < 0.1 and abs(logs.std() - 2) < 0.1


def test_a_step_after_a_drawn_call_starts_from_that_very_draw() -> None:
    inner, x, sigma = Constant(), torch.full(SHAPE, 20.0), torch.tensor(0.0005)
    denoise = GivenDenoiser(inner, GivenFrames(LATENT, FIRST, drawn(0)), SIGMA_DATA)
    clean = denoise(x, sigma)
    assert torch.equal(denoise.given(x, sigma), inner.shown[0])
    assert torch.equal(clean[:, :, 0], LATENT[:, :, 0])  # it never leaves them to the sample
