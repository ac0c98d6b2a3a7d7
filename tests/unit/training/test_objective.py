import math

import numpy
import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.sampling.rectified_flow import CleanFrames, FlowDenoiser
from cosmos_nemo.training.given import CleanGiven, Given, NoisedGiven
from cosmos_nemo.training.noise_levels import NoiseLevels
from cosmos_nemo.training.objective import Draw, draw, edm_loss, flow_loss, noise_levels, objective_of
from cosmos_nemo.training.settings import TrainingSettings

SHAPE = (2, 3, 4, 5)
CPU = torch.device("cpu")


def drawn(positions: object, **other: object) -> Draw:
    options = {"seed": 3, "levels": NoiseLevels(mean=0.0, std=1.0), "text_dropout": 0.2} | other
    return draw(list(positions), SHAPE, device=CPU, **options)  # type: ignore[call-overload, arg-type]


def test_the_loss_is_the_weighted_error_of_the_estimate_written_out() -> None:
    """arXiv 2206.00364, table 1, and spec/nemo-cosmos1.md 5: w = (s^2 + 0.25) / (0.5 s)^2."""
    generator = numpy.random.RandomState(0)
    x0, noise = generator.standard_normal((2, 3, *SHAPE))
    sigma = numpy.array([0.05, 0.9, 30.0])
    expected, answers, asked = [], [], []
    for clean, eps, s in zip(x0, noise, sigma, strict=True):
        noisy = clean + s * eps
        raw = numpy.tanh(noisy / math.sqrt(s * s + 0.25)) + math.log(s) / 4
        estimate = 0.25 / (s * s + 0.25) * noisy + s * 0.5 / math.sqrt(s * s + 0.25) * raw
        expected.append(((s * s + 0.25) / (0.5 * s) ** 2 * (clean - estimate) ** 2).mean())
        answers.append(noisy / math.sqrt(s * s + 0.25))
        asked.append(math.log(s) / 4)

    def network(x_BCTHW: Tensor, c_noise_B: Tensor) -> Tensor:
        numpy.testing.assert_allclose(x_BCTHW.numpy(), numpy.stack(answers), rtol=2e-5, atol=1e-6)
        numpy.testing.assert_allclose(c_noise_B.numpy(), asked, rtol=1e-6)
        return x_BCTHW.tanh() + c_noise_B[:, None, None, None, None]

    chance = Draw(torch.tensor(sigma).float(), torch.tensor(noise).float(), torch.ones(3, dtype=torch.bool))
    loss = edm_loss(network, torch.tensor(x0).float(), chance, sigma_data=0.5)
    assert loss.dtype == torch.float32
    numpy.testing.assert_allclose(loss.numpy(), expected, rtol=2e-4)


def test_the_loss_is_of_order_one_at_every_noise_level() -> None:
    """Of a network that answers zero it is the mean square of what F should have said: one."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 8, 8, 8, 8, generator=generator) * 0.5
    noise = torch.randn(x0.shape, generator=generator)
    sigma_B = torch.tensor([0.002, 0.1, 0.5, 5.0, 80.0])
    chance = Draw(sigma_B, noise, torch.ones(5, dtype=torch.bool))
    loss = edm_loss(lambda x, _: torch.zeros_like(x), x0, chance, sigma_data=0.5)
    torch.testing.assert_close(loss, torch.ones(5), rtol=0, atol=0.1)


def test_an_answer_in_bfloat16_is_scored_in_float32() -> None:
    chance = drawn(range(2))
    x0 = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    rounded, exact = (
        edm_loss(lambda x, _, d=dtype: x.to(torch.bfloat16).to(d), x0, chance, sigma_data=0.5)  # type: ignore[misc]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact)


def test_a_samples_draw_depends_on_its_position_alone() -> None:
    whole = drawn(range(6))
    for positions in ([0, 1], [4], [5, 2, 3]):
        part = drawn(positions)
        assert torch.equal(part.sigma_B, whole.sigma_B[positions])
        assert torch.equal(part.noise_BCTHW, whole.noise_BCTHW[positions])
        assert torch.equal(part.keeps_text_B, whole.keeps_text_B[positions])


def test_the_global_generator_is_neither_read_nor_changed() -> None:
    torch.manual_seed(1)
    first = drawn(range(2))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(drawn(range(2)).noise_BCTHW, first.noise_BCTHW)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_positions_have_draws_of_their_own() -> None:
    sigmas = torch.cat([drawn(range(200), seed=seed).sigma_B for seed in (0, 1, 2, 2**32 - 1)])
    assert len(sigmas.unique()) == 800
    assert drawn([2**40]).noise_BCTHW.isfinite().all()


def test_noise_is_normal_and_the_samples_independent() -> None:
    noise = drawn(range(400)).noise_BCTHW.flatten(1)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    correlation = noise[:-1].flatten().dot(noise[1:].flatten()) / noise[1:].numel()
    assert abs(float(correlation)) < 0.03


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.5, 0.4)])
def test_the_logarithm_of_sigma_is_normal(mean: float, std: float) -> None:
    chance = drawn(range(4000), levels=NoiseLevels(mean=mean, std=std))
    unit = numpy.sort((chance.sigma_B.log().numpy() - mean) / std)
    normal = torch.special.ndtr(torch.tensor(unit, dtype=torch.float64)).numpy()
    steps = (numpy.arange(4000) + 0.5) / 4000
    assert numpy.abs(normal - steps).max() < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov at 1 %
    first_noise = chance.noise_BCTHW[:, 0, 0, 0, 0]
    assert abs(float(torch.corrcoef(torch.stack([chance.sigma_B.log(), first_noise]))[0, 1])) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_the_text_is_left_out_of_the_share_asked_for(share: float) -> None:
    chance = drawn(range(4000), text_dropout=share)
    left_out = 1 - float(chance.keeps_text_B.float().mean())
    assert abs(left_out - share) < 4 * math.sqrt(max(share * (1 - share), 1e-9) / 4000) + 1e-9
    both = torch.stack([chance.sigma_B.log(), chance.keeps_text_B.float()])
    if share:
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.06


CHOICES = torch.tensor([[True, False, False], [True, True, False]])


def test_given_frames_are_shown_in_their_own_scaling_and_do_not_count() -> None:
    """spec/predict1-diffusion.md 5.2: the network sees c_in(a) (z + a eps) there, whatever sigma is."""
    generator = numpy.random.RandomState(1)
    x0, noise, eps = generator.standard_normal((3, 2, *SHAPE))
    sigma, level, is_given = [0.3, 20.0], [0.001, 0.4], [[True, False, False], [True, True, False]]
    expected, seen = [], []
    for k in range(2):
        s, a = sigma[k], level[k]
        noisy = x0[k] + s * noise[k]
        scaled = noisy / math.sqrt(s * s + 0.25)
        own = (x0[k] + a * eps[k]) / math.sqrt(a * a + 0.25)
        for frame, given in enumerate(is_given[k]):
            if given:
                scaled[:, frame] = own[:, frame]
        raw = numpy.tanh(scaled)
        estimate = 0.25 / (s * s + 0.25) * noisy + s * 0.5 / math.sqrt(s * s + 0.25) * raw
        error = (s * s + 0.25) / (0.5 * s) ** 2 * (x0[k] - estimate) ** 2
        expected.append(error[:, [frame for frame in range(3) if not is_given[k][frame]]].mean())
        seen.append(scaled)

    def network(x_BCTHW: Tensor, _: Tensor) -> Tensor:
        numpy.testing.assert_allclose(x_BCTHW.numpy(), numpy.stack(seen), rtol=2e-5, atol=1e-6)
        return x_BCTHW.tanh()

    given = NoisedGiven(torch.tensor(is_given), torch.tensor(level), torch.tensor(eps).float())
    keeps = torch.ones(2, dtype=torch.bool)
    chance = Draw(torch.tensor(sigma), torch.tensor(noise).float(), keeps, given)
    loss = edm_loss(network, torch.tensor(x0).float(), chance, sigma_data=0.5)
    numpy.testing.assert_allclose(loss.numpy(), expected, rtol=2e-4)


@pytest.mark.parametrize("kind", [NoisedGiven, CleanGiven])
def test_what_is_answered_for_given_frames_has_no_gradient_and_what_is_made_has(kind: type[Given]) -> None:
    chance = drawn(range(8), choices_KT=CHOICES, given=kind)
    assert chance.given is not None and 0 < chance.given.is_given_BT[:, 1].sum() < 8
    answer = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    x0 = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    if kind is CleanGiven:
        flow_loss(lambda x, _: answer, x0, chance).sum().backward()
    else:
        edm_loss(lambda x, _: answer, x0, chance, sigma_data=0.5).sum().backward()
    assert answer.grad is not None
    is_touched_BT = (answer.grad != 0).all(dim=4).all(dim=3).all(dim=1)
    assert torch.equal(is_touched_BT, ~chance.given.is_given_BT)
    assert (answer.grad[chance.given.is_given_BT[:, None, :].expand(8, 2, 3)] == 0).all()


def test_what_is_given_depends_on_the_position_alone_and_differs_from_the_samples_noise() -> None:
    whole = drawn(range(6), choices_KT=CHOICES)
    part = drawn([4, 1], choices_KT=CHOICES)
    assert isinstance(whole.given, NoisedGiven) and isinstance(part.given, NoisedGiven)
    assert torch.equal(part.sigma_B, whole.sigma_B[[4, 1]])
    for name in ("is_given_BT", "sigma_B", "noise_BCTHW"):
        assert torch.equal(getattr(part.given, name), getattr(whole.given, name)[[4, 1]])
    assert len(whole.given.sigma_B.unique()) == 6
    both = torch.stack([whole.given.noise_BCTHW.flatten(), whole.noise_BCTHW.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2
    assert drawn(range(6)).given is None


def test_which_frames_are_given_clean_depends_on_the_position_alone() -> None:
    whole, part = (drawn(k, choices_KT=CHOICES, given=CleanGiven) for k in (range(40), [30, 7, 11]))
    assert whole.given is not None and part.given is not None
    assert torch.equal(part.given.is_given_BT, whole.given.is_given_BT[[30, 7, 11]])
    assert torch.equal(part.noise_BCTHW, whole.noise_BCTHW[[30, 7, 11]])
    assert 10 < whole.given.is_given_BT[:, 1].sum() < 30


def flow_chance(sigma: list[float], *, seed: int = 0, given: CleanGiven | None = None) -> tuple[Tensor, Draw]:
    """Unit normal clips, and a draw of these levels."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, len(sigma), *SHAPE, generator=generator)
    keeps = torch.ones(len(sigma), dtype=torch.bool)
    return x0, Draw(torch.tensor(sigma), noise, keeps, given)


def test_the_flow_loss_is_the_weighted_error_of_the_estimate_written_out() -> None:
    """With the weight ((1 + s) / s)^2 of the released training; given frames as in 4.1 of the spec."""
    sigma, is_given = [0.05, 0.9, 30.0], [[True, False, False], [True, True, False], [True, False, False]]
    x0, chance = flow_chance(sigma, given=CleanGiven(torch.tensor(is_given)))
    expected, inputs, asked = [], [], []
    for k, s in enumerate(sigma):
        clean, eps = x0[k].double().numpy(), chance.noise_BCTHW[k].double().numpy()
        t, noisy, others = s / (1 + s), clean + s * eps, [f for f in range(3) if not is_given[k][f]]
        scaled, levels = noisy * (1 - t), numpy.full(3, t)
        scaled[:, is_given[k]] = clean[:, is_given[k]]
        levels[is_given[k]] = 1e-4 / (1 + 1e-4)
        raw = numpy.tanh(scaled) + levels[None, :, None, None]
        estimate = (1 - t) * noisy - t * raw
        expected.append((((1 + s) / s) ** 2 * (clean - estimate) ** 2)[:, others].mean())
        inputs.append(scaled)
        asked.append(levels)

    def network(x_BCTHW: Tensor, timesteps_BT: Tensor) -> Tensor:
        numpy.testing.assert_allclose(x_BCTHW.numpy(), numpy.stack(inputs), rtol=2e-5, atol=1e-6)
        numpy.testing.assert_allclose(timesteps_BT.numpy(), asked, rtol=1e-6)
        return x_BCTHW.tanh() + timesteps_BT[:, None, :, None, None]

    loss = flow_loss(network, x0, chance)
    assert loss.dtype == torch.float32
    numpy.testing.assert_allclose(loss.numpy(), expected, rtol=2e-4)


@pytest.mark.parametrize("given", [None, CleanGiven(torch.tensor([[True, False, False]] * 4))])
def test_an_answer_that_is_the_direction_costs_nothing_whatever_it_says_of_given_frames(
    given: CleanGiven | None,
) -> None:
    x0, chance = flow_chance([1e-6, 0.3, 80.0, 1e5], given=given)
    answer = chance.noise_BCTHW - x0
    if given is not None:
        answer[:, :, 0] = 1e6
    assert flow_loss(lambda *_: answer, x0, chance).tolist() == [0, 0, 0, 0]
    answer[1, 0, 2, 0, 0] += 1
    loss = flow_loss(lambda *_: answer, x0, chance)
    assert loss[1] > 0 and loss[[0, 2, 3]].tolist() == [0, 0, 0]


def test_the_flow_loss_is_of_order_one_and_finite_at_every_noise_level() -> None:
    """Of a network that answers zero it is the mean square of noise - x0: two."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 6, 8, 8, 8, 8, generator=generator)
    sigma_B = torch.tensor([0.0, 1e-6, 0.1, 1.0, 80.0, 1e5])
    chance = Draw(sigma_B, noise, torch.ones(6, dtype=torch.bool))
    loss = flow_loss(lambda x, _: torch.zeros_like(x), x0, chance)
    torch.testing.assert_close(loss, torch.full((6,), 2.0), rtol=0, atol=0.2)


def test_at_the_ends_the_network_sees_the_clip_alone_and_the_noise_alone() -> None:
    x0, chance = flow_chance([0.0, 1e5])

    def network(x_BCTHW: Tensor, timesteps_BT: Tensor) -> Tensor:
        assert torch.equal(x_BCTHW[0], x0[0])
        torch.testing.assert_close(x_BCTHW[1], chance.noise_BCTHW[1], rtol=0, atol=1e-4)
        assert timesteps_BT[0].tolist() == [0, 0, 0] and (timesteps_BT[1] > 0.9999).all()
        return x_BCTHW

    flow_loss(network, x0, chance)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_training_and_sampling_show_and_tell_the_network_the_same(sigma: float) -> None:
    given = CleanGiven(torch.tensor([[True, True, False]]))
    x0, chance = flow_chance([sigma], given=given)
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x_BCTHW: Tensor, timesteps: Tensor) -> Tensor:
        seen.append((x_BCTHW, timesteps.flatten()))
        return chance.noise_BCTHW - x0

    flow_loss(network, x0, chance)
    frames = CleanFrames(x0, given.is_given_BT[0])
    x0_hat = FlowDenoiser(network, frames)(x0 + sigma * chance.noise_BCTHW, torch.tensor(sigma))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=2e-5)


def test_a_draw_of_the_other_family_is_refused() -> None:
    x0, chance = flow_chance([1.0], given=CleanGiven(torch.tensor([[True, False, False]])))
    with pytest.raises(AssertionError, match="CleanGiven"):
        edm_loss(lambda x, _: x, x0, chance, sigma_data=0.5)
    noised = drawn([0], choices_KT=CHOICES)
    with pytest.raises(AssertionError, match="NoisedGiven"):
        flow_loss(lambda x, _: x, x0, noised)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_every_card_has_an_objective_of_its_family(card: ModelCard) -> None:
    objective = objective_of(card, num_latent_frames=24)
    levels = noise_levels(TrainingSettings(), objective)
    if "Predict2" in card.name:
        assert objective.loss is flow_loss and objective.given is CleanGiven
        # The released training: sigma from exp(N(0, 1)), times sqrt(24) for 24 latent frames.
        assert levels.mean == pytest.approx(math.log(math.sqrt(24)))
        assert (levels.std, levels.high_share) == (1, 0.05)
    else:
        assert objective.loss.keywords == {"sigma_data": 0.5}  # type: ignore[attr-defined]
        assert objective.given is NoisedGiven
        assert levels == NoiseLevels(mean=0, std=1)
    asked = TrainingSettings(log_sigma_mean=0.3, log_sigma_std=2, high_noise_share=0.0)
    assert noise_levels(asked, objective) == NoiseLevels(mean=0.3, std=2)
