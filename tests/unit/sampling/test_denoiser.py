import pytest
import torch

from cosmos_nemo.sampling.denoiser import EdmDenoiser, branches_needed, guided


def test_x0_is_skip_times_x_plus_out_times_the_network_of_the_scaled_x():
    seen = []

    def network(x, c_noise):
        seen.append((x, c_noise))
        return 3 * x

    x, sigma = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    x0 = EdmDenoiser(network, 0.5)(x, sigma)
    torch.testing.assert_close(seen[0][0], x / 4.25**0.5)
    torch.testing.assert_close(seen[0][1], torch.tensor(2.0).double().log() / 4)
    torch.testing.assert_close(x0, 0.25 / 4.25 * x + 1 / 4.25**0.5 * 3 * x / 4.25**0.5)


def test_a_network_that_knows_the_answer_gives_the_clean_sample_back():
    clean, sigma = torch.randn(4, 5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x = clean + sigma * torch.randn(4, 5, dtype=torch.float64)
    variance = sigma**2 + 0.25

    def network(x_scaled, c_noise):
        return (clean - 0.25 / variance * x) / (0.5 * sigma / variance.sqrt())

    torch.testing.assert_close(EdmDenoiser(network, 0.5)(x, sigma), clean)


@pytest.mark.parametrize("of_network", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("of_x", "of_x0"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_x0_has_the_dtype_of_x_but_at_least_float32(of_x, of_x0, of_network):
    denoise = EdmDenoiser(lambda x, c_noise: x.to(of_network), 0.5)
    assert denoise(torch.ones(3, dtype=of_x), torch.tensor(80.0)).dtype == of_x0


def test_scaling_is_not_rounded_to_bfloat16_with_x():
    sigma, x = torch.tensor(0.0123), torch.ones(3, dtype=torch.bfloat16)
    x0 = EdmDenoiser(lambda x, c_noise: torch.zeros_like(x), 0.5)(x, sigma)
    torch.testing.assert_close(x0, torch.full((3,), 0.25 / (0.0123**2 + 0.25)))


def test_no_frames_are_given_to_a_plain_denoiser():
    x = torch.randn(3)
    assert EdmDenoiser(lambda x, c_noise: x, 0.5).given(x, torch.tensor(1.0)) is x


def test_guidance_moves_away_from_the_unconditional_prediction():
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    assert guided(cond, uncond, 7.0).tolist() == [1 + 7 * 0.5, 2 - 7.0]


def test_guidance_zero_is_the_conditional_and_minus_one_the_unconditional_prediction():
    cond, uncond = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(guided(cond, uncond, 0.0), cond)
    torch.testing.assert_close(guided(cond, uncond, -1.0), uncond)


def test_guiding_the_network_output_and_guiding_x0_are_the_same():
    x, sigma = torch.randn(6, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    cond, uncond = torch.randn(2, 6, dtype=torch.float64)
    of_output = EdmDenoiser(lambda x, c_noise: guided(cond, uncond, 7.0), 0.5)(x, sigma)
    by_branch = [
        EdmDenoiser(lambda x, c_noise, output=output: output, 0.5)(x, sigma) for output in (cond, uncond)
    ]
    torch.testing.assert_close(of_output, guided(*by_branch, 7.0))


def test_guidance_of_bfloat16_predictions_is_computed_in_float32():
    cond, uncond = torch.tensor([1.0]).bfloat16(), torch.tensor([1 - 2**-8]).bfloat16()
    assert guided(cond, uncond, 7.0).item() == 1 + 7 * 2**-8


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [
        (0, ("cond",)),
        (-0.0, ("cond",)),
        (-1.0, ("uncond",)),
        (7.0, ("cond", "uncond")),
        (-0.5, ("cond", "uncond")),
    ],
)
def test_only_the_branches_that_guidance_uses_are_needed(guidance, branches):
    assert branches_needed(guidance) == branches
