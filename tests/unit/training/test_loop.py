"""The loop on one rank. Several ranks, and runs that are interrupted: tests/parallel."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.training.data import sample_index
from cosmos_nemo.training.given import CleanGiven, NoisedGiven, choices_of
from cosmos_nemo.training.loop import LossError, Training
from cosmos_nemo.training.noise_levels import NoiseLevels
from cosmos_nemo.training.objective import Draw, draw
from cosmos_nemo.training.settings import TrainingSettings
from tests.fakes import CPU, tiny_network
from tests.parallel.train_worker import CARD, LATENT_CTHW, alone, data, tiny


@torch.no_grad()
def twin(network: DiT) -> DiT:
    """The same weights, without the update's hooks."""
    other = tiny_network(network.shape, dtype=network.dtype)
    for parameter, value in zip(other.parameters(), network.parameters(), strict=True):
        parameter.copy_(value)
    return other


def loss_by_hand(network: DiT, positions: range, settings: TrainingSettings) -> Tensor:
    """In float64, without any of the training modules but the draw and the order of the samples."""
    clips = data()
    chance = draw(
        positions,
        LATENT_CTHW,
        seed=settings.seed,
        levels=NoiseLevels(mean=0.0, std=1.0),
        text_dropout=settings.text_dropout,
        device=CPU,
    )
    losses = []
    for k, position in enumerate(positions):
        index = sample_index(len(clips), seed=settings.seed, position=position)
        s = float(chance.sigma_B[k])
        text = clips.texts_MLD[int(clips.text_of_N[index])].double() * float(chance.keeps_text_B[k])
        x0 = clips.latents_NCTHW[index].double() * 0.5
        noisy = x0 + s * chance.noise_BCTHW[k].double()
        root = math.sqrt(s * s + 0.25)
        raw = network(
            (noisy / root)[None],
            modulation=network.modulate(torch.tensor([math.log(s) / 4], dtype=torch.float64)),
            text=network.encode_text(text[None]),
            positions=network.positions(LATENT_CTHW[1:], fps=24.0),
        )[0]
        estimate = 0.25 / (s * s + 0.25) * noisy + 0.5 * s / root * raw
        losses.append(((s * s + 0.25) / (0.5 * s) ** 2 * (x0 - estimate) ** 2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("recompute", ["full", "off"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_loss_and_gradients_are_those_of_the_formula(recompute: str, micro_batch_size: int) -> None:
    ours = alone(
        dtype=torch.float64,
        global_batch_size=4,
        micro_batch_size=micro_batch_size,
        recompute=recompute,
        text_dropout=0.5,
    )
    ours.step = 1
    other = twin(ours.network).requires_grad_(True)
    check_gradients(ours, other, expected=loss_by_hand(other, range(4, 8), ours.settings))


def check_gradients(ours: Training, other: DiT, *, expected: Tensor) -> None:
    """Those of our next step against those of another computation of the same loss with `other`'s weights."""
    expected.backward()
    loss = ours._losses()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in other.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            ours.update.gradients[name],  # type: ignore[attr-defined]
            parameter.grad.float(),
            rtol=0,
            atol=1e-5 * float(parameter.grad.abs().max()),
            msg=name,
        )


PREDICT2 = tiny("Cosmos-Nano-Predict2-Video2World")


def draw_of_predict2(positions: range, settings: TrainingSettings) -> Draw:
    return draw(
        positions,
        LATENT_CTHW,
        seed=settings.seed,
        levels=NoiseLevels(mean=math.log(3) / 2, std=1.0, high_share=0.05),  # of three latent frames
        text_dropout=settings.text_dropout,
        device=CPU,
        given=CleanGiven,
        choices_KT=choices_of(PREDICT2, LATENT_CTHW[1]),
    )


def flow_loss_by_hand(network: DiT, chance: Draw, positions: range, settings: TrainingSettings) -> Tensor:
    """In float64, a sample at a time, every frame with a modulation of its own."""
    clips, losses = data(PREDICT2), []
    assert chance.given is not None
    for k, position in enumerate(positions):
        index = sample_index(len(clips), seed=settings.seed, position=position)
        s = float(chance.sigma_B[k])
        is_given_T = chance.given.is_given_BT[k]
        text = clips.texts_MLD[int(clips.text_of_N[index])].double() * float(chance.keeps_text_B[k])
        x0, noise = clips.latents_NCTHW[index].double(), chance.noise_BCTHW[k].double()
        seen = (x0 + s * noise) / (1 + s)
        seen[:, is_given_T] = x0[:, is_given_T]
        timesteps_T = torch.full((LATENT_CTHW[1],), s / (1 + s), dtype=torch.float64)
        timesteps_T[is_given_T] = 1e-4 / (1 + 1e-4)
        mask = torch.zeros(1, 1, *LATENT_CTHW[1:], dtype=torch.float64)
        mask[:, :, is_given_T] = 1
        raw = network(
            seen[None],
            modulation=network.modulated_by(timesteps_T[:, None], frames=(1,) * LATENT_CTHW[1]),
            text=network.encode_text(text[None]),
            positions=network.positions(LATENT_CTHW[1:], fps=24.0),
            given_mask_B1THW=mask,
        )[0]
        losses.append(((raw - (noise - x0)) ** 2)[:, ~is_given_T].mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("recompute", ["full", "off"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_predict2s_loss_and_gradients_are_those_of_its_samples_one_by_one(
    recompute: str, micro_batch_size: int
) -> None:
    """Samples of one micro-batch that are given one frame and two share no run of frames but the first."""
    ours = alone(
        card=PREDICT2,
        dtype=torch.float64,
        global_batch_size=4,
        micro_batch_size=micro_batch_size,
        recompute=recompute,
        text_dropout=0.5,
    )
    ours.step = 2
    chance = draw_of_predict2(range(8, 12), ours.settings)
    assert chance.given is not None
    assert chance.given.is_given_BT.sum(dim=1).tolist() == [2, 1, 2, 2]
    other = twin(ours.network).requires_grad_(True)
    by_hand = flow_loss_by_hand(other, chance, range(8, 12), ours.settings)
    check_gradients(ours, other, expected=by_hand)


def test_a_predict2_learns_from_the_frames_it_is_given_what_noise_hides() -> None:
    """At the noise that sampling begins with: of clips of one shade, and of clips that may turn it over."""

    def last_loss(*, is_foreseeable: bool) -> float:
        run = alone(
            card=PREDICT2,
            num_steps=60,
            global_batch_size=8,
            micro_batch_size=8,
            learning_rate=3e-3,
            adam_betas=(0.9, 0.99),
            recompute="off",
            log_sigma_mean=math.log(80),
            log_sigma_std=0.1,
            high_noise_share=0.0,
        )
        clips, generator = data(PREDICT2, num_samples=64), torch.Generator().manual_seed(0)
        shade, turn = torch.randn(2, 64, 1, 1, 1, 1, generator=generator)
        latents = shade.expand(64, *LATENT_CTHW).clone()
        if not is_foreseeable:
            latents[:, :, 1:] *= turn.sign()
        run.dataset = replace(clips, latents_NCTHW=latents)
        losses = [report.loss for report in run.steps()]
        assert losses[0] > 2
        return sum(losses[-10:]) / 10

    assert last_loss(is_foreseeable=True) < 1.4 < 1.6 < last_loss(is_foreseeable=False)


def test_the_loss_falls_along_the_gradient_as_fast_as_it_says() -> None:
    ours = alone(dtype=torch.float64, global_batch_size=2)
    ours._losses()
    gradients = dict(ours.update.gradients)  # type: ignore[attr-defined]
    slope = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    at = []
    for side in (1, -1):
        moved = twin(ours.network)
        for name, parameter in moved.named_parameters():
            parameter += side * 1e-3 / slope * gradients[name]
        at.append(float(loss_by_hand(moved, range(2), ours.settings)))
    assert (at[0] - at[1]) / 2e-3 == pytest.approx(slope, rel=1e-3)


def test_recomputation_changes_no_bit() -> None:
    runs = [alone(recompute=recompute) for recompute in ("full", "off")]
    reports = [[(r.loss, r.gradient_norm) for r in run.steps()] for run in runs]
    assert reports[0] == reports[1]
    for a, b in zip(runs[0].network.parameters(), runs[1].network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("recompute", "times"), [("full", 2), ("off", 1)])
def test_with_recomputation_a_layer_is_run_twice(recompute: str, times: int) -> None:
    run = alone(num_steps=1, global_batch_size=1, recompute=recompute)
    seen: list[str] = []
    for index, layer in enumerate(run.network.decoder):
        layer.mlp.register_forward_pre_hook(lambda *_, name=f"layer {index}": seen.append(name))
    list(run.steps())
    assert [seen.count(f"layer {index}") for index in range(2)] == [times, times]


def test_steps_are_numbered_from_one_and_warm_up() -> None:
    run = alone(num_steps=4, learning_rate=0.4e-3, warmup_steps=4, global_batch_size=1)
    reports = list(run.steps())
    assert [r.step for r in reports] == [1, 2, 3, 4]
    assert [r.learning_rate for r in reports] == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4])
    assert all(r.seconds > 0 and r.gradient_norm > 0 for r in reports)
    assert run.step == 4
    assert list(run.steps()) == []


def test_the_learning_rate_of_the_report_is_the_one_that_was_taken() -> None:
    run = alone(num_steps=1, learning_rate=0.5, warmup_steps=10, global_batch_size=1, clip_norm=0)
    before = [parameter.detach().clone() for parameter in run.network.parameters()]
    list(run.steps())
    largest = max(
        float((p - old).abs().max()) for p, old in zip(run.network.parameters(), before, strict=True)
    )
    assert largest == pytest.approx(0.05, rel=1e-3)  # Adam's first step is the learning rate


def test_a_stop_is_heeded_after_the_step_that_was_under_way() -> None:
    asked = iter([False, True, True])
    run = alone(num_steps=5, global_batch_size=1)
    assert [r.step for r in run.steps(wants_to_stop=lambda: next(asked))] == [1, 2]
    assert run.step == 2


def test_the_average_is_updated_every_so_many_steps() -> None:
    run = alone(num_steps=5, global_batch_size=1, average="sharded", average_every=2)
    list(run.steps())
    assert run.average is not None and run.average.num_updates == 2


@pytest.mark.parametrize("averages", [False, True])
def test_averaging_does_not_touch_the_training(averages: bool) -> None:
    run = alone(average="sharded" if averages else "off")
    losses = [r.loss for r in run.steps()]
    assert losses == [r.loss for r in alone().steps()]


def test_the_next_step_takes_the_next_samples_and_another_noise() -> None:
    run = alone(num_steps=3, learning_rate=0.0, global_batch_size=2)
    whole = [r.loss for r in run.steps()]
    assert len(set(whole)) == 3
    again = alone(num_steps=3, learning_rate=0.0, global_batch_size=2)
    again.step = 2
    assert [r.loss for r in again.steps()] == whole[2:]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_advice(bad: float) -> None:
    run = alone()
    run.dataset.latents_NCTHW[:, 0, 0, 0, 0] = bad  # type: ignore[attr-defined]
    with pytest.raises(LossError, match=r"the loss of step 1 is (nan|inf): lower --learning_rate"):
        list(run.steps())
    assert run.step == 0


def test_a_gradient_that_is_no_number_stops_although_the_loss_is_one() -> None:
    run = alone()
    run.network.final_layer.linear.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(LossError, match="the gradient of step 1 is"):
        list(run.steps())


def test_masters_and_average_keep_their_values_when_a_step_fails() -> None:
    run = alone(average="sharded")
    run.dataset.latents_NCTHW.fill_(float("nan"))  # type: ignore[attr-defined]
    assert run.average is not None
    before = {name: value.clone() for name, value in run.average.values.items()}
    with pytest.raises(LossError):
        list(run.steps())
    assert all(torch.equal(value, before[name]) for name, value in run.average.values.items())


def test_the_text_is_read_unless_it_is_left_out() -> None:
    losses = []
    for scale in (1.0, 3.0):
        run = alone(num_steps=1, text_dropout=0.0)
        run.dataset = replace(data(), texts_MLD=data().texts_MLD * scale)
        losses.append([r.loss for r in run.steps()])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("name", "ways"),
    [("Cosmos-Nano-Video2World", {(0,), (0, 1)}), ("Cosmos-Nano-WorldInterpolator", {(0, 2)})],
)
def test_the_network_is_shown_the_given_frames_and_their_mask(name: str, ways: set[tuple[int, ...]]) -> None:
    card = CARDS[name]
    run = alone(replace(CARD.network, takes_given_mask=True), num_steps=1, global_batch_size=8)
    run.card = replace(card, network=run.network.shape)
    run.settings = replace(run.settings, micro_batch_size=8)
    seen: list[tuple[Tensor, Tensor]] = []
    forward = run.network.forward

    def watched(x_BCTHW: Tensor, **options: Any) -> Tensor:
        seen.append((x_BCTHW.detach(), options["given_mask_B1THW"]))
        return forward(x_BCTHW, **options)

    run.network.forward = watched  # type: ignore[method-assign]
    [report] = run.steps()
    [(x_BCTHW, mask_B1THW)] = seen
    choices_KT = choices_of(run.card, LATENT_CTHW[1])
    chance = draw(
        range(8),
        LATENT_CTHW,
        seed=run.settings.seed,
        levels=NoiseLevels(mean=0.0, std=1.0),
        text_dropout=0.2,
        device=CPU,
        choices_KT=choices_KT,
    )
    assert isinstance(chance.given, NoisedGiven)
    found = set()
    for k in range(8):
        index = sample_index(6, seed=run.settings.seed, position=k)
        x0, a = data().latents_NCTHW[index] * 0.5, float(chance.given.sigma_B[k])
        places = chance.given.is_given_BT[k].nonzero().flatten().tolist()
        shown = (x0 + a * chance.given.noise_BCTHW[k]) / math.sqrt(a * a + 0.25)
        torch.testing.assert_close(x_BCTHW[k][:, places], shown[:, places], rtol=1e-4, atol=1e-5)
        expected = torch.zeros(LATENT_CTHW[1])
        expected[places] = 1
        assert torch.equal(mask_B1THW[k, 0, :, 2, 3], expected)
        found.add(tuple(places))
    assert found == ways
    assert report.loss > 0
