import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cosmos_nemo.catalog import CARDS, Family, WanTokenizerShape
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.parallel.groups import Groups, start_alone
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import Text2WorldRequest
from cosmos_nemo.sampling.noise import draw_noise
from cosmos_nemo.stages.base import Parked
from cosmos_nemo.stages.denoise import Condition, Denoise
from tests.fakes import CPU, TINY, FakeGroup, Threads, tiny_network

NEMO = Path(__file__).parents[2] / "golden" / "nemo_text_torch_dist"
CARD = replace(CARDS["Cosmos-Nano-Text2World"], network=TINY)
REQUEST = Text2WorldRequest(prompt="x", height=64, width=48, num_frames=17, fps=12, num_steps=2, seed=3)
LATENT = (1, 16, 3, 8, 6)


@pytest.fixture
def texts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prompt, negative = torch.randn(2, 1, 12, 32, generator=generator)
    return prompt, negative


def stage(*, groups: Groups | None = None, **changes: Any) -> Denoise:
    options = {"card": CARD, "checkpoint": NEMO, "offload": False} | changes
    return Denoise(
        groups=groups or start_alone(CPU),
        backend=torch_backend(),
        device=CPU,
        dtype=torch.float32,
        **options,
    )


def lively() -> Denoise:
    """A stage whose network answers strongly to its text."""
    made = stage()
    made.module, made._resident = tiny_network(seed=5), True
    return made


def network_of(made: Denoise) -> DiT:
    assert isinstance(made.module, DiT)
    return made.module


def branch(made: Denoise, text: Tensor, x: Tensor, sigma: float) -> Tensor:
    """F of one branch, by the network alone."""
    network = network_of(made)
    return network(
        x.float(),
        modulation=network.modulate(torch.tensor([sigma]).log() / 4),
        text=network.encode_text(text),
        positions=network.positions(LATENT[2:], fps=12),
    ).double()


def by_hand(
    made: Denoise, texts: tuple[Tensor, Tensor], guidance: float, *, sigma_data: float = 0.5
) -> Tensor:
    """Two Euler steps in x0 and the clean-up call; spec/predict1-diffusion.md 4 and 4.1."""
    sigmas = [(80 ** (1 / 7) + i / 2 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(3)]
    x = 80 * draw_noise(LATENT, seed=3).double()
    for now, then in zip(sigmas, [*sigmas[1:], None], strict=True):
        variance = now**2 + sigma_data**2
        cond, uncond = (branch(made, text, x / variance**0.5, now) for text in texts)
        output = cond + guidance * (cond - uncond)
        x0 = sigma_data**2 / variance * x + now * sigma_data / variance**0.5 * output
        if then is None:
            return x0 / sigma_data
        x = x0 + then / now * (x - x0)
    raise AssertionError


@pytest.mark.parametrize(("guidance", "calls"), [(7.0, 6), (0.0, 3), (-1.0, 3), (0.5, 6)])
def test_a_sample_is_the_guidance_formula_with_no_needless_call(
    texts: tuple[Tensor, Tensor], guidance: float, calls: int
) -> None:
    made = lively()
    counted: list[int] = []
    handle = network_of(made).register_forward_hook(lambda *_: counted.append(1))
    latent = made(replace(REQUEST, guidance=guidance, sampler="RES-1euler"), *texts)
    handle.remove()
    assert len(counted) == calls
    wanted = by_hand(made, texts, guidance)
    assert latent.dtype == torch.float32
    assert latent.shape == LATENT
    torch.testing.assert_close(latent.double(), wanted, rtol=0, atol=1e-4 * wanted.std().item())
    other = by_hand(made, texts, guidance + 0.1)
    assert (other - wanted).abs().max() > 1e-2 * wanted.std()


@pytest.mark.parametrize(("guidance", "ignored"), [(0.0, 1), (-1.0, 0)])
def test_the_branch_that_the_formula_cancels_has_no_influence_even_when_broken(
    texts: tuple[Tensor, Tensor], guidance: float, ignored: int
) -> None:
    made, request = lively(), replace(REQUEST, guidance=guidance)
    broken = [text.clone() for text in texts]
    broken[ignored].fill_(float("nan"))
    assert torch.equal(made(request, *broken), made(request, *texts))
    broken[1 - ignored].fill_(float("nan"))
    assert made(request, *broken).isnan().any()


@pytest.mark.parametrize(("sampler", "steps"), [("RES", 3), ("RES-1euler", 3), ("RES-2mid", 5), ("EDM", 2)])
def test_progress_counts_the_calls_of_the_requests_sampler(
    texts: tuple[Tensor, Tensor], sampler: str, steps: int
) -> None:
    made, seen, counted = lively(), [], []
    network_of(made).register_forward_hook(lambda *_: counted.append(1))
    request = replace(REQUEST, sampler=sampler, num_steps=2 if sampler != "RES-2mid" else 4, guidance=0.0)
    made(request, *texts, on_step=lambda step, total: seen.append((step, total)))
    assert seen == [(step, steps) for step in range(1, steps + 1)]
    assert len(counted) == steps


def test_a_seed_makes_the_same_latent_and_another_seed_another(texts: tuple[Tensor, Tensor]) -> None:
    made = lively()
    torch.manual_seed(1)
    first = made(REQUEST, *texts)
    torch.manual_seed(2)
    assert torch.equal(made(REQUEST, *texts), first)
    assert (made(replace(REQUEST, seed=4), *texts) - first).abs().max() > 0.1


@pytest.mark.parametrize("change", [{"fps": 24}, {"sampler": "EDM"}, {"num_steps": 3}])
def test_every_choice_of_the_request_reaches_the_sample(
    texts: tuple[Tensor, Tensor], change: dict[str, Any]
) -> None:
    made = lively()
    assert (made(replace(REQUEST, **change), *texts) - made(REQUEST, *texts)).abs().max() > 1e-3


def test_the_text_of_no_prompt_is_zeros_and_adds_nothing(texts: tuple[Tensor, Tensor]) -> None:
    made, request = lively(), replace(REQUEST, guidance=-1.0)
    latent = made(request, texts[0], torch.zeros(1, 12, 32))
    for layer in network_of(made).decoder:
        layer.cross_attention.linear_proj.weight.zero_()
    assert torch.equal(made(request, *texts), latent)


def test_rounded_rotary_angles_reach_the_network(texts: tuple[Tensor, Tensor]) -> None:
    request = replace(REQUEST, fps=30)
    latents = []
    for rope_dtype in (torch.float32, torch.bfloat16):
        with stage(rope_dtype=rope_dtype) as denoise:
            latents.append(denoise(request, *texts))
            assert network_of(denoise).rope_dtype == rope_dtype
    assert not torch.equal(*latents)


def test_sigma_data_is_the_cards(texts: tuple[Tensor, Tensor]) -> None:
    made = lively()
    made.card = replace(CARD, sigma_data=1.5)
    latent = made(replace(REQUEST, sampler="RES-1euler"), *texts)
    wanted = by_hand(made, texts, REQUEST.guidance, sigma_data=1.5)
    torch.testing.assert_close(latent.double(), wanted, rtol=0, atol=1e-4 * wanted.std().item())


def test_an_offloaded_stage_is_parked_between_calls_that_give_the_same_latent(
    texts: tuple[Tensor, Tensor],
) -> None:
    kept, parked = stage(), stage(offload=True)
    with kept as denoise:
        wanted = denoise(REQUEST, *texts)
    for _ in range(2):
        with parked as denoise:
            assert torch.equal(denoise(REQUEST, *texts), wanted)
        assert {parameter.numel() for parameter in network_of(parked).parameters()} == {0}
    assert all(parameter.numel() for parameter in network_of(kept).parameters())


def test_a_stage_that_is_never_parked_takes_no_second_copy_of_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keep(*_: object) -> None:
        raise AssertionError("kept a copy")

    monkeypatch.setattr(Parked, "keep", keep)
    with stage(offload=False) as denoise:
        assert network_of(denoise).device == CPU
    with pytest.raises(AssertionError, match="kept a copy"), stage(offload=True):
        pass


def test_the_network_is_filled_from_the_checkpoint_in_the_stages_dtype(texts: tuple[Tensor, Tensor]) -> None:
    with stage() as full:
        exact = {name: parameter.clone() for name, parameter in network_of(full).named_parameters()}
    made = stage()
    made.dtype = torch.bfloat16
    with made as denoise:
        for name, parameter in network_of(denoise).named_parameters():
            assert parameter.dtype == torch.bfloat16
            assert torch.equal(parameter, exact[name].bfloat16()), name
        assert denoise(REQUEST, *texts).dtype == torch.float32


def test_another_models_checkpoint_is_refused_before_the_network_is_built() -> None:
    wrong = replace(CARD, network=replace(TINY, num_layers=3))
    with pytest.raises(CheckpointError), stage(card=wrong):
        pass


def halves() -> tuple[list[Denoise], Threads]:
    """One stage for each of two ranks that hold the same network and a guidance branch each."""
    network, alone = tiny_network(seed=5), start_alone(CPU)
    made = []
    for rank in range(2):
        cfg: Any = FakeGroup(2, rank)
        one = stage(groups=replace(alone, plan=Plan(cfg=2), cfg=cfg))
        one.module, one._resident = network, True
        made.append(one)
    return made, Threads(2)


@pytest.mark.parametrize("guidance", [7.0, 0.0, -1.0])
def test_two_halves_of_the_ranks_make_the_latent_of_one_with_one_call_a_step_each(
    texts: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    request = replace(REQUEST, guidance=guidance)
    wanted = lively()(request, *texts)
    ranks, threads = halves()
    monkeypatch.setattr(dist, "all_gather_into_tensor", threads.all_gather_into_tensor)
    calls: list[int] = []
    network_of(ranks[0]).register_forward_hook(lambda *_: calls.append(threading.get_ident()))
    latents: list[Tensor | None] = [None, None]

    def work(rank: int) -> None:
        latents[rank] = ranks[rank](request, *texts)

    started = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(30)
    for latent in latents:
        assert latent is not None
        assert torch.equal(latent, wanted)
    assert sorted(calls.count(thread.ident or 0) for thread in started) == [3, 3]


def conditioned() -> Denoise:
    """A lively stage whose network has a channel for the given frames."""
    shape = replace(TINY, takes_given_mask=True)
    made = stage(card=replace(CARD, network=shape))
    made.module, made._resident = tiny_network(shape, seed=5), True
    return made


GIVEN = torch.linspace(-2, 2, 2 * 16 * 8 * 6).view(1, 16, 2, 8, 6)


@pytest.mark.parametrize("draws_noise", [False, True])
@pytest.mark.parametrize("places", [(0, 1), (0, 2)])
def test_given_frames_come_back_where_they_belong_and_decide_the_rest(
    texts: tuple[Tensor, Tensor], places: tuple[int, ...], draws_noise: bool
) -> None:
    made = conditioned()

    def latent(given: Tensor) -> Tensor:
        condition = Condition(latent_BCTHW=given, places=places, draws_noise=draws_noise)
        return made(REQUEST, *texts, condition=condition)

    first = latent(GIVEN)
    torch.testing.assert_close(first[:, :, list(places)], GIVEN)
    [free] = {0, 1, 2} - set(places)
    assert (latent(-GIVEN)[:, :, free] - first[:, :, free]).abs().max() > 1e-2
    assert torch.equal(latent(GIVEN), first)


def test_the_network_is_told_which_frames_are_given(texts: tuple[Tensor, Tensor]) -> None:
    made, masks = conditioned(), []
    network_of(made).register_forward_pre_hook(
        lambda _, __, options: masks.append(options["given_mask_B1THW"]), with_kwargs=True
    )
    made(REQUEST, *texts, condition=Condition(latent_BCTHW=GIVEN, places=(0, 2)))
    assert {tuple(mask[0, 0, :, 3, 3].tolist()) for mask in masks} == {(1.0, 0.0, 1.0)}
    assert all(mask.shape == (1, 1, *LATENT[2:]) for mask in masks)


def test_the_noise_on_given_frames_is_of_the_level_asked_for(texts: tuple[Tensor, Tensor]) -> None:
    made, shown = conditioned(), []
    network_of(made).register_forward_pre_hook(lambda _, args: shown.append(args[0]))

    def first_shown(level: float) -> Tensor:
        shown.clear()
        condition = Condition(latent_BCTHW=GIVEN, places=(0, 1), noise_level=level)
        made(REQUEST, *texts, condition=condition)
        return shown[0][:, :, :2]

    # c_in times what c_in(level) / c_in scales: the network sees c_in(level) (z + level eps).
    noise = draw_noise(LATENT, seed=3)[:, :, :2]
    for level in (0.001, 0.2):
        wanted = (0.5 * GIVEN + level * noise) / (level**2 + 0.25) ** 0.5
        torch.testing.assert_close(first_shown(level), wanted, rtol=1e-4, atol=1e-4)


PREDICT2 = replace(
    CARD,
    network=replace(TINY, family=Family.PREDICT2, takes_given_mask=True),
    tokenizer=WanTokenizerShape(),
    sigma_data=1.0,
)
GIVEN_OF_PREDICT2 = Condition(latent_BCTHW=torch.full((1, 16, 2, 8, 6), 0.3), places=(0, 1))


def of_predict2(*, groups: Groups | None = None) -> Denoise:
    made = stage(card=PREDICT2, groups=groups)
    made.module, made._resident = tiny_network(PREDICT2.network, seed=5), True
    return made


def test_predict2_keeps_its_given_frames_and_makes_the_others(texts: tuple[Tensor, Tensor]) -> None:
    made = of_predict2()(REQUEST, *texts, condition=GIVEN_OF_PREDICT2)
    assert made.shape == (1, 16, 5, 8, 6)
    assert torch.equal(made[:, :, :2], GIVEN_OF_PREDICT2.latent_BCTHW)
    assert (made[:, :, 2:] - 0.3).abs().mean() > 0.1


def test_predict2s_network_is_told_given_frames_clean_at_a_level_of_their_own(
    texts: tuple[Tensor, Tensor],
) -> None:
    made, seen = of_predict2(), list[tuple[Tensor, Any, Tensor]]()
    network = network_of(made)
    levels: list[Tensor] = []
    modulate = network.modulate
    network.modulate = lambda timesteps: (levels.append(timesteps), modulate(timesteps))[1]  # type: ignore[method-assign]
    network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["modulation"], kwargs["given_mask_B1THW"])),
        with_kwargs=True,
    )
    made(REQUEST, *texts, condition=GIVEN_OF_PREDICT2)
    assert len(levels) == 3 and len(seen) == 6, "modulation is worked out once for both branches"
    for x, modulation, mask in seen:
        assert torch.equal(x[:, :, :2], GIVEN_OF_PREDICT2.latent_BCTHW)
        assert modulation.frames == (2, 3)
        assert mask[0, 0, :, 0, 0].tolist() == [1, 1, 0, 0, 0]
    for level, sigma in zip(levels, (80.0, 2.515, 0.002), strict=True):
        assert level.shape == (1, 5)
        assert level[0, :2].tolist() == pytest.approx([1e-4 / 1.0001] * 2)
        assert level[0, 2:].tolist() == pytest.approx([sigma / (1 + sigma)] * 3, rel=1e-3)


def test_predict2_without_given_frames_makes_all_of_them(texts: tuple[Tensor, Tensor]) -> None:
    made = stage(card=replace(PREDICT2, network=replace(PREDICT2.network, takes_given_mask=False)))
    made.module, made._resident = tiny_network(made.card.network, seed=5), True
    first = made(REQUEST, *texts)
    assert first.isfinite().all() and first.std() > 0.1
    assert torch.equal(made(REQUEST, *texts), first)
