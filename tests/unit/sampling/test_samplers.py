import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.sampling.samplers import SAMPLERS, euler, euler_sampler, res, res_sampler

GOLDEN = Path(__file__).parents[2] / "golden" / "predict1_res_trajectories.safetensors"
CASES = json.loads(GOLDEN.with_suffix(".json").read_text())["cases"]
MU = torch.tensor([0.3, -1.1, 0.7, 2.0], dtype=torch.float64)
NOISE = torch.tensor([0.5, 1.5, -0.2, -1.0], dtype=torch.float64)


class Recorded:
    """A denoiser that remembers what it was called with."""

    def __init__(self, formula, given=lambda x: x):
        self.formula, self.put_in, self.inputs, self.sigmas = formula, given, [], []

    def __call__(self, x, sigma):
        self.inputs.append(x)
        self.sigmas.append(sigma)
        return self.formula(x, sigma)

    def given(self, x, sigma):
        return self.put_in(x)


def gauss(x, sigma, mu=MU, s=0.5):
    return (s**2 * x + sigma**2 * mu) / (s**2 + sigma**2)


def exact_gauss_path(x, start, end, mu=MU, s=0.5):
    """Solution of dx/dsigma = (x - x0) / sigma for `gauss`."""
    return mu + (x - mu) * math.sqrt((s**2 + end**2) / (s**2 + start**2))


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_res_follows_the_reference_trajectory(case, golden):
    mu = golden["inputs.mu"]
    formula = {
        "gauss": lambda x, sigma: gauss(x, sigma, mu=mu),
        "tanh": lambda x, sigma: 0.7 * torch.tanh((x + 0.3 * mu) / torch.sqrt(1 + sigma**2)),
    }[case["denoiser"]]
    sampler = res_sampler(
        case["solver"], sigma_max=case["sigma_max"], sigma_min=case["sigma_min"], rho=case["rho"]
    )
    denoise = Recorded(formula)
    final = sampler.sample(denoise, golden["inputs.noise"], num_steps=case["num_steps"])
    want = {name.rpartition(".")[2]: golden[name] for name in golden if f".{case['key']}." in name}
    got = {
        "sigma_schedule": sampler.schedule(case["num_steps"]),
        "denoiser_inputs": torch.stack(denoise.inputs),
        "denoiser_sigmas": torch.stack(denoise.sigmas),
        "final": final,
    }
    assert len(denoise.inputs) == case["calls"] == sampler.num_calls(case["num_steps"])
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, want[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "order"), [("RES", 2), ("RES-2mid", 2), ("RES-1euler", 1), ("EDM", 1)])
def test_halving_the_step_divides_the_error_as_the_order_says(name, order):
    def error(num_steps):
        sampler = SAMPLERS[name]
        end = sampler.schedule(num_steps)[-1].item()
        x = exact_gauss_path(NOISE * sampler.start_scale, 80, end)
        want = x if end == 0 else gauss(x, end)
        return (sampler.sample(gauss_denoiser(), NOISE, num_steps=num_steps) - want).abs().max().item()

    assert error(80) / error(160) == pytest.approx(2**order, rel=0.1)


def gauss_denoiser():
    return Recorded(gauss)


def test_the_table_starts_at_the_scales_of_the_released_models():
    assert {name: sampler.start_scale for name, sampler in SAMPLERS.items()} == pytest.approx(
        {"RES": 80.0, "RES-1euler": 80.0, "RES-2mid": 80.0, "EDM": 80.00624975587844}
    )


def test_the_table_ends_at_the_levels_of_the_released_models():
    assert SAMPLERS["RES"].schedule(35)[-1].item() == pytest.approx(0.002)
    assert SAMPLERS["EDM"].schedule(35)[-2:].tolist() == pytest.approx([0.0002, 0])


@pytest.mark.parametrize(("name", "calls"), [("RES", 36), ("RES-1euler", 36), ("RES-2mid", 35), ("EDM", 35)])
def test_35_steps_make_as_many_denoiser_calls_as_the_table_says(name, calls):
    denoise = gauss_denoiser()
    SAMPLERS[name].sample(denoise, NOISE, num_steps=35)
    assert len(denoise.inputs) == calls == SAMPLERS[name].num_calls(35)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_denoiser_call_is_reported_with_its_number_and_the_total(name):
    steps = []
    denoise = gauss_denoiser()
    SAMPLERS[name].sample(
        denoise, NOISE, num_steps=6, on_step=lambda *step: steps.append((*step, len(denoise.inputs)))
    )
    total = SAMPLERS[name].num_calls(6)
    assert steps == [(call, total, call) for call in range(1, total + 1)]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_denoiser_sees_and_the_caller_gets_the_dtype_of_the_noise(name, dtype):
    denoise = gauss_denoiser()
    final = SAMPLERS[name].sample(denoise, NOISE.to(dtype), num_steps=4)
    assert final.dtype == dtype
    assert {x.dtype for x in denoise.inputs} == {sigma.dtype for sigma in denoise.sigmas} == {dtype}
    assert {sigma.dim() for sigma in denoise.sigmas} == {0}


def test_res_keeps_a_float64_state_for_float32_noise():
    def in_float32(x, sigma):
        return gauss(x, sigma, mu=MU.float())

    class TakesFloat64(Recorded):
        def __call__(self, x, sigma):
            return super().__call__(x.float(), sigma.float()).double()

    low, high = Recorded(in_float32), TakesFloat64(in_float32)
    start, sigmas = (80 * NOISE).float(), SAMPLERS["RES"].schedule(35)
    res(low, start, sigmas)
    res(high, start.double(), sigmas)
    # With a float32 state the last bits would drift apart.
    assert all(torch.equal(a, b) for a, b in zip(low.inputs, high.inputs, strict=True))


def test_res_ends_with_a_prediction_at_the_last_level():
    denoise = Recorded(lambda x, sigma: torch.full_like(x, sigma.item()))
    final = res(denoise, NOISE, torch.tensor([4.0, 2.0, 1.0]))
    assert [sigma.item() for sigma in denoise.sigmas] == [4.0, 2.0, 1.0]
    assert torch.equal(final, torch.ones_like(NOISE))


def test_midpoint_asks_at_the_geometric_middle_of_each_interval():
    denoise = gauss_denoiser()
    res(denoise, NOISE, torch.tensor([4.0, 1.0, 0.25]), solver="2mid")
    assert [sigma.item() for sigma in denoise.sigmas] == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25])


def test_res_steps_from_the_state_without_the_given_frames():
    denoise = Recorded(gauss, given=lambda x: torch.full_like(x, 1e6))
    assert torch.equal(
        res(denoise, NOISE, torch.tensor([4.0, 1.0])), res(gauss_denoiser(), NOISE, torch.tensor([4.0, 1.0]))
    )


def test_euler_steps_from_the_state_with_the_given_frames_put_in():
    denoise = Recorded(lambda x, sigma: torch.zeros_like(x), given=lambda x: x + 1)
    final = euler(denoise, torch.tensor([3.0]), torch.tensor([4.0, 2.0]))
    assert final.item() == pytest.approx((3 + 1) * 2 / 4)
    assert denoise.inputs[0].item() == 3.0


def test_euler_takes_the_textbook_step():
    sigmas = torch.tensor([5.0, 3.0, 0.7, 0.1], dtype=torch.float64)
    want = NOISE
    for now, then in pairwise(sigmas):
        want = want + (then - now) / now * (want - gauss(want, now))
    torch.testing.assert_close(euler(gauss_denoiser(), NOISE, sigmas), want)


def test_euler_lands_on_the_last_prediction_at_sigma_zero():
    clean = torch.tensor([1e-3, 123.456, -7.0])
    denoise = Recorded(lambda x, sigma: clean)
    assert torch.equal(SAMPLERS["EDM"].sample(denoise, NOISE[:3].float(), num_steps=1), clean)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_leaves_the_noise_as_it_was(name):
    noise = NOISE.clone()
    SAMPLERS[name].sample(gauss_denoiser(), noise, num_steps=3 if name != "RES-2mid" else 4)
    assert torch.equal(noise, NOISE)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [0, -1])
def test_less_than_one_step_is_refused(name, num_steps):
    denoise = gauss_denoiser()
    with pytest.raises(ValueError, match=f"num_steps {num_steps}"):
        SAMPLERS[name].sample(denoise, NOISE, num_steps=num_steps)
    assert not denoise.inputs


def test_midpoint_refuses_a_single_step_and_takes_two():
    with pytest.raises(ValueError, match="Ask for 2 or more"):
        SAMPLERS["RES-2mid"].sample(gauss_denoiser(), NOISE, num_steps=1)
    assert SAMPLERS["RES-2mid"].num_calls(2) == 3


@pytest.mark.parametrize("integrate", [res, euler])
@pytest.mark.parametrize(
    "sigmas",
    [[1.0, 2.0], [2.0, 1.0, 1.0], [2.0, float("nan"), 1.0], [float("inf"), 1.0], [1.0, -1.0], [1.0], []],
)
def test_levels_that_do_not_fall_are_refused(integrate, sigmas):
    denoise = gauss_denoiser()
    with pytest.raises(ValueError, match="levels"):
        integrate(denoise, NOISE, torch.tensor(sigmas))
    assert not denoise.inputs


@pytest.mark.parametrize("last", [0.0, 1.9999999])
def test_res_refuses_to_reach_zero_or_to_take_a_step_that_is_too_small(last):
    with pytest.raises(ValueError, match="RES steps in ln sigma"):
        res(gauss_denoiser(), NOISE, torch.tensor([4.0, 2.0, last], dtype=torch.float64))


def test_an_unknown_solver_is_refused_by_name():
    with pytest.raises(ValueError, match="3kutta"):
        res(gauss_denoiser(), NOISE, torch.tensor([2.0, 1.0]), solver="3kutta")


def test_samplers_with_other_levels_start_from_them():
    assert euler_sampler(sigma_max=10.0).start_scale == pytest.approx(math.sqrt(101))
    assert res_sampler(sigma_max=10.0).start_scale == 10.0
    assert res_sampler(sigma_max=10.0).schedule(3)[0].item() == pytest.approx(10.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_on_a_gpu_is_sampled_there(name):
    denoise = Recorded(lambda x, sigma: gauss(x, sigma, mu=MU.to(x.device)))
    want = SAMPLERS[name].sample(gauss_denoiser(), NOISE, num_steps=6)
    got = SAMPLERS[name].sample(denoise, NOISE.cuda(), num_steps=6)
    assert {x.device.type for x in denoise.inputs} == {"cuda"}
    torch.testing.assert_close(got.cpu(), want)
