"""Rectified flow and clean given frames, against spec/predict2-video2world.md 4 and 4.1."""

import math

import pytest
import torch
from torch import Tensor

from cosmos_nemo.sampling.denoiser import guided
from cosmos_nemo.sampling.rectified_flow import CleanFrames, FlowDenoiser, flow_scaling
from cosmos_nemo.sampling.samplers import SAMPLERS

SHAPE = (2, 3, 4, 2, 5)
"""B C T H W"""
NONE, FIRST, FIRST_TWO, LAST_TOO = (
    torch.tensor(places).bool() for places in ([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1])
)
SIGMAS = [80.0, 3.0, 0.5, 0.002, 1e-5]


def latent(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


LATENT, X = latent(1), latent(2)


class Network:
    """Answers with a constant, and remembers what it was shown."""

    def __init__(self, answer: float | Tensor = 0.25) -> None:
        self.answer = answer
        self.shown: list[Tensor] = []
        self.timesteps: list[Tensor] = []

    def __call__(self, x: Tensor, timesteps_T: Tensor) -> Tensor:
        self.shown.append(x)
        self.timesteps.append(timesteps_T)
        return torch.zeros_like(x) + self.answer


def frames(is_given: Tensor, latent_BCTHW: Tensor = LATENT) -> CleanFrames:
    return CleanFrames(latent_BCTHW, is_given)


# The scaling.


def test_coefficients_are_those_of_the_line_from_data_to_noise() -> None:
    scaling = flow_scaling(torch.tensor(3.0, dtype=torch.float64))
    found = [value.item() for value in (scaling.c_skip, scaling.c_out, scaling.c_in, scaling.c_noise)]
    assert found == [0.25, -0.75, 0.25, 0.75]


def test_coefficients_have_the_shape_and_dtype_of_sigma() -> None:
    scaling = flow_scaling(torch.ones(3, 1, 1))
    for value in (scaling.c_skip, scaling.c_out, scaling.c_in, scaling.c_noise):
        assert value.shape == (3, 1, 1) and value.dtype == torch.float32


def test_without_noise_the_network_has_no_say() -> None:
    scaling = flow_scaling(torch.tensor(0.0))
    assert (scaling.c_skip, scaling.c_out, scaling.c_in, scaling.c_noise) == (1, 0, 1, 0)


# Nothing given.


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_network_that_predicts_the_direction_gives_the_clean_latent_at_any_level(sigma: float) -> None:
    noise = latent(3).double()
    x = LATENT.double() + sigma * noise
    x0 = FlowDenoiser(lambda x, timesteps_T: noise - LATENT)(x, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(x0, LATENT.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_what_the_network_is_shown_lies_on_the_line_from_data_to_noise(sigma: float) -> None:
    noise, network = latent(3).double(), Network()
    FlowDenoiser(network)(LATENT + sigma * noise, torch.tensor(sigma, dtype=torch.float64))
    t = sigma / (1 + sigma)
    torch.testing.assert_close(network.shown[0], (1 - t) * LATENT + t * noise)


def test_without_given_frames_all_timesteps_are_that_of_the_level() -> None:
    network = Network()
    FlowDenoiser(network)(X, torch.tensor(3.0))
    [timesteps_T] = network.timesteps
    assert timesteps_T.tolist() == [0.75] * 4 and timesteps_T.dtype == torch.float32


def test_frames_of_which_none_is_given_change_nothing() -> None:
    plain, none = Network(), Network()
    x0 = FlowDenoiser(plain)(X, torch.tensor(0.7))
    assert torch.equal(FlowDenoiser(none, frames(NONE))(X, torch.tensor(0.7)), x0)
    assert torch.equal(none.shown[0], plain.shown[0])
    assert torch.equal(none.timesteps[0], plain.timesteps[0])


def test_nothing_is_put_into_x_if_nothing_is_given() -> None:
    assert FlowDenoiser(Network()).given(X, torch.tensor(1.0)) is X


# Given frames.


@pytest.mark.parametrize("is_given", [FIRST, FIRST_TWO, LAST_TOO])
def test_given_frames_are_shown_clean_and_unscaled_and_come_back_bit_for_bit(is_given: Tensor) -> None:
    network = Network()
    x0 = FlowDenoiser(network, frames(is_given))(X, torch.tensor(3.0))
    [shown] = network.shown
    assert torch.equal(shown[:, :, is_given], LATENT[:, :, is_given])
    assert torch.equal(shown[:, :, ~is_given], 0.25 * X[:, :, ~is_given])
    assert torch.equal(x0[:, :, is_given], LATENT[:, :, is_given])
    torch.testing.assert_close(x0[:, :, ~is_given], 0.25 * X[:, :, ~is_given] - 0.75 * 0.25)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_timestep_of_given_frames_is_a_small_one_at_every_level(sigma: float) -> None:
    network = Network()
    FlowDenoiser(network, frames(LAST_TOO))(X, torch.tensor(sigma))
    [timesteps_T] = network.timesteps
    small, its = 1e-4 / (1 + 1e-4), sigma / (1 + sigma)
    assert timesteps_T.shape == (4,) and timesteps_T.dtype == torch.float32
    assert timesteps_T.tolist() == pytest.approx([small, its, its, small], rel=1e-6)


def test_the_level_told_of_given_frames_can_be_another() -> None:
    network = Network()
    FlowDenoiser(network, frames(FIRST), sigma_conditional=1.0)(X, torch.tensor(3.0))
    assert network.timesteps[0].tolist() == [0.5, 0.75, 0.75, 0.75]


def test_the_latent_is_read_only_where_it_is_given() -> None:
    with_nan = LATENT.clone()
    with_nan[:, :, ~FIRST] = math.nan
    network = Network()
    denoise = FlowDenoiser(network, frames(FIRST, with_nan))
    assert denoise(X, torch.tensor(3.0)).isfinite().all()
    assert network.shown[0].isfinite().all()
    assert denoise.given(X, torch.tensor(3.0)).isfinite().all()


def test_what_the_network_says_of_given_frames_is_not_used() -> None:
    answer = torch.zeros(SHAPE)
    answer[:, :, FIRST] = math.nan
    x0 = FlowDenoiser(Network(answer), frames(FIRST))(X, torch.tensor(3.0))
    assert torch.equal(x0[:, :, FIRST], LATENT[:, :, FIRST])


def test_one_latent_serves_a_batch() -> None:
    x0 = FlowDenoiser(Network(), frames(FIRST, LATENT[:1]))(X, torch.tensor(3.0))
    assert x0.shape == SHAPE
    assert torch.equal(x0[1, :, 0], LATENT[0, :, 0])


def test_x_with_the_given_frames_in_it_has_them_clean_whatever_the_level() -> None:
    denoise = FlowDenoiser(Network(), frames(LAST_TOO))
    for sigma in SIGMAS:
        put_in = denoise.given(X, torch.tensor(sigma))
        assert torch.equal(put_in[:, :, LAST_TOO], LATENT[:, :, LAST_TOO])
        assert torch.equal(put_in[:, :, ~LAST_TOO], X[:, :, ~LAST_TOO])


def test_x_itself_is_left_as_it_is() -> None:
    x = X.clone()
    denoise = FlowDenoiser(Network(), frames(FIRST))
    denoise(x, torch.tensor(3.0))
    denoise.given(x, torch.tensor(3.0))
    assert torch.equal(x, X)


@pytest.mark.parametrize("sampler", ["RES", "RES-1euler", "RES-2mid", "EDM"])
def test_a_whole_sample_keeps_the_given_frames_bit_for_bit(sampler: str) -> None:
    denoise = FlowDenoiser(Network(), frames(LAST_TOO))
    x0 = SAMPLERS[sampler].sample(denoise, X, num_steps=6)
    assert torch.equal(x0[:, :, LAST_TOO], LATENT[:, :, LAST_TOO])
    assert not torch.equal(x0[:, :, ~LAST_TOO], LATENT[:, :, ~LAST_TOO])


@pytest.mark.parametrize("sampler", ["RES", "EDM"])
def test_a_sample_follows_a_network_that_knows_where_it_ends(sampler: str) -> None:
    """Of data that is one point, mu, the direction is known from where one is: (input - mu) / t."""

    def network(x: Tensor, timesteps_T: Tensor) -> Tensor:
        return (x - 0.5) / timesteps_T.view(1, 1, -1, 1, 1)

    x0 = SAMPLERS[sampler].sample(FlowDenoiser(network, frames(FIRST)), X, num_steps=10)
    torch.testing.assert_close(x0[:, :, 1:], torch.full_like(x0[:, :, 1:], 0.5), rtol=0, atol=1e-4)


def test_guiding_the_network_output_and_guiding_x0_are_the_same() -> None:
    sigma = torch.tensor(1.7, dtype=torch.float64)
    cond, uncond = latent(5).double(), latent(6).double()
    told = frames(FIRST)
    of_output = FlowDenoiser(lambda x, timesteps_T: guided(cond, uncond, 7.0), told)(X.double(), sigma)
    by_branch = [
        FlowDenoiser(lambda x, timesteps_T, output=output: output, told)(X.double(), sigma)
        for output in (cond, uncond)
    ]
    torch.testing.assert_close(of_output, guided(*by_branch, 7.0))


def test_the_mask_is_one_on_given_frames_and_has_the_latents_rows_and_columns() -> None:
    mask = frames(LAST_TOO).mask_B1THW
    assert mask.shape == (2, 1, 4, 2, 5) and mask.dtype == LATENT.dtype
    assert mask[:, 0].amin(dim=(0, 2, 3)).tolist() == [1, 0, 0, 1]
    assert mask[:, 0].amax(dim=(0, 2, 3)).tolist() == [1, 0, 0, 1]


# Precision.


@pytest.mark.parametrize("of_network", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("of_x", "of_x0"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
@pytest.mark.parametrize("told", [None, frames(FIRST)])
def test_x0_has_the_dtype_of_x_but_at_least_float32(
    of_x: torch.dtype, of_x0: torch.dtype, of_network: torch.dtype, told: CleanFrames | None
) -> None:
    seen = []

    def network(x: Tensor, timesteps_T: Tensor) -> Tensor:
        seen.append((x.dtype, timesteps_T.dtype))
        return x.to(of_network)

    x0 = FlowDenoiser(network, told)(X.to(of_x), torch.tensor(80.0))
    assert x0.dtype == of_x0
    assert seen == [(of_x0, torch.float32)]


def test_scaling_is_not_rounded_to_bfloat16_with_x_or_the_network() -> None:
    x = torch.ones(SHAPE, dtype=torch.bfloat16)
    x0 = FlowDenoiser(lambda x, timesteps_T: x.bfloat16() * 0 + 1)(x, torch.tensor(79.0))
    torch.testing.assert_close(x0, torch.full(SHAPE, 1 / 80 - 79 / 80), rtol=0, atol=1e-6)


def test_scaling_is_computed_in_the_precision_of_x_whatever_that_of_sigma() -> None:
    x = torch.ones(SHAPE, dtype=torch.float64)
    x0 = FlowDenoiser(lambda x, timesteps_T: x)(x, torch.tensor(2.0))
    torch.testing.assert_close(x0, torch.full_like(x, 1 / 3 - 2 / 3 * 1 / 3), rtol=0, atol=1e-14)


def test_a_given_latent_of_float32_stays_what_it_is_in_a_bfloat16_sample() -> None:
    x0 = FlowDenoiser(Network(), frames(FIRST))(X.bfloat16(), torch.tensor(3.0))
    assert torch.equal(x0[:, :, FIRST], LATENT[:, :, FIRST])


# What must not be passed.


def test_what_the_network_raises_comes_through() -> None:
    def network(x: Tensor, timesteps_T: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        FlowDenoiser(network, frames(FIRST))(X, torch.tensor(3.0))


def test_a_level_per_sample_is_refused() -> None:
    with pytest.raises(AssertionError):
        FlowDenoiser(Network())(X, torch.tensor([3.0, 3.0]))


def test_a_latent_of_another_length_is_refused_and_not_repeated() -> None:
    denoise = FlowDenoiser(Network(), CleanFrames(LATENT[:, :, :1], FIRST[:1]))
    with pytest.raises(AssertionError):
        denoise(X, torch.tensor(3.0))
    with pytest.raises(AssertionError):
        denoise.given(X, torch.tensor(3.0))


@pytest.mark.parametrize("is_given", [FIRST[:1], FIRST.float(), FIRST.view(1, 4)])
def test_one_bool_per_latent_frame_says_what_is_given(is_given: Tensor) -> None:
    with pytest.raises(AssertionError):
        CleanFrames(LATENT, is_given)
