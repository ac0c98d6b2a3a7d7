import math
from dataclasses import replace

import pytest
import torch

from cosmos_nemo.catalog import CARDS, ModelCard
from cosmos_nemo.sampling import given as sampling
from cosmos_nemo.sampling.denoiser import EdmDenoiser
from cosmos_nemo.sampling.given import FixedCorruption, GivenDenoiser, GivenFrames
from cosmos_nemo.sampling.rectified_flow import CleanFrames, FlowDenoiser
from cosmos_nemo.sampling.scaling import edm_scaling
from cosmos_nemo.training.given import LN_SIGMA_MEAN, LN_SIGMA_STD, CleanGiven, Given, NoisedGiven, choices_of

TEXT2WORLD, VIDEO2WORLD, INTERPOLATOR, PREDICT2 = (
    CARDS[f"Cosmos-Nano-{kind}"]
    for kind in ("Text2World", "Video2World", "WorldInterpolator", "Predict2-Video2World")
)
SHAPE = (2, 4, 2, 3)


def places(card: ModelCard, num_latent_frames: int) -> list[list[int]]:
    choices_KT = choices_of(card, num_latent_frames)
    assert choices_KT is not None
    return [row.nonzero().flatten().tolist() for row in choices_KT]


def unit(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2 + math.prod(SHAPE), generator=torch.Generator().manual_seed(seed))


def some(card: ModelCard = VIDEO2WORLD, count: int = 5) -> NoisedGiven:
    choices_KT = choices_of(card, SHAPE[1])
    assert choices_KT is not None
    return NoisedGiven.drawn(unit(count), choices_KT, SHAPE)


def test_a_video2world_is_told_its_first_frame_or_two_and_has_one_to_make() -> None:
    assert places(VIDEO2WORLD, 5) == places(VIDEO2WORLD, 3) == [[0], [0, 1]]
    assert places(VIDEO2WORLD, 2) == [[0]]


def test_how_many_frames_a_video2world_is_told_stands_in_its_card() -> None:
    """Video frames there: 1 or 5 of Predict2, whose latent frames hold four."""
    assert PREDICT2.video.given_frames == (1, 5)
    assert places(PREDICT2, 9) == places(PREDICT2, 3) == [[0], [0, 1]]
    assert places(PREDICT2, 2) == [[0]]
    one = replace(PREDICT2, video=replace(PREDICT2.video, given_frames=(1,)))
    three = replace(PREDICT2, video=replace(PREDICT2.video, given_frames=(9,)))
    assert (places(one, 9), places(three, 9)) == ([[0]], [[0, 1, 2]])


@pytest.mark.parametrize("name", [name for name in CARDS if "Predict2" in name and "Text2Image" not in name])
def test_predict2_is_told_one_latent_frame_or_two_as_in_its_released_training(name: str) -> None:
    card = CARDS[name]
    assert places(card, card.latent_frames(card.video.num_frames)) == [[0], [0, 1]]


def test_an_interpolator_is_told_its_first_frame_and_its_last() -> None:
    assert places(INTERPOLATOR, 3) == [[0, 2]]


def test_a_text2world_is_told_nothing() -> None:
    assert choices_of(TEXT2WORLD, 5) is None


@pytest.mark.parametrize(("card", "num"), [(VIDEO2WORLD, 1), (PREDICT2, 1), (INTERPOLATOR, 2)])
def test_a_clip_that_leaves_nothing_to_make_is_no_clip(card: ModelCard, num: int) -> None:
    with pytest.raises(AssertionError, match="leave none to make"):
        choices_of(card, num)


def test_levels_are_those_under_which_the_released_models_saw_frames() -> None:
    """exp(N(-3, 2)), spec/predict1-diffusion.md 5.3."""
    assert (LN_SIGMA_MEAN, LN_SIGMA_STD) == (sampling._LN_SIGMA_MEAN, sampling._LN_SIGMA_STD) == (-3, 2)
    choices_KT = choices_of(VIDEO2WORLD, SHAPE[1])
    assert choices_KT is not None
    drawn = NoisedGiven.drawn(unit(4000), choices_KT, SHAPE)
    logarithms = drawn.sigma_B.log()
    assert float(logarithms.mean()) == pytest.approx(-3, abs=0.15)
    assert float(logarithms.std()) == pytest.approx(2, abs=0.1)
    assert float(drawn.is_given_BT[:, 1].float().mean()) == pytest.approx(0.5, abs=0.04)
    assert drawn.is_given_BT[:, 0].all() and not drawn.is_given_BT[:, 2:].any()
    both = torch.stack([logarithms, drawn.is_given_BT[:, 1].float()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.06


def test_the_extremes_of_the_normal_distribution_choose_a_way_too() -> None:
    choices_KT = choices_of(VIDEO2WORLD, SHAPE[1])
    assert choices_KT is not None
    extremes = unit(2)
    extremes[:, 1] = torch.tensor([-40.0, 40.0])
    assert NoisedGiven.drawn(extremes, choices_KT, SHAPE).is_given_BT.sum(dim=1).tolist() == [1, 2]
    clean = CleanGiven.drawn(extremes[:, 1:2], choices_KT, SHAPE)
    assert clean.is_given_BT.sum(dim=1).tolist() == [1, 2]


def test_given_frames_look_as_the_sampler_shows_them() -> None:
    """Whatever the sample's own noise level: GivenDenoiser's frames, times c_in as EdmDenoiser does it."""
    drawn, sigma = some(), torch.tensor(7.0)
    x0 = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    x = x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    seen = drawn.put_into(edm_scaling(sigma, sigma_data=0.5).c_in * x, x0, sigma_data=0.5)
    for k in range(5):
        shown: list[torch.Tensor] = []

        def network(scaled: torch.Tensor, _: torch.Tensor, into: list[torch.Tensor] = shown) -> torch.Tensor:
            into.append(scaled)
            return torch.zeros_like(scaled)

        corruption = FixedCorruption(drawn.noise_BCTHW[k : k + 1], float(drawn.sigma_B[k]))
        frames = GivenFrames(x0[k : k + 1], drawn.is_given_BT[k], corruption)
        GivenDenoiser(EdmDenoiser(network, 0.5), frames, 0.5)(x[k : k + 1], sigma)
        torch.testing.assert_close(seen[k : k + 1], shown[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(drawn.mask_B1THW(x0)[k : k + 1], frames.mask_B1THW)


def test_the_mean_counts_only_the_frames_to_make() -> None:
    drawn = some(count=2)
    drawn = replace(
        drawn, is_given_BT=torch.tensor([[True, False, False, False], [True, True, False, False]])
    )
    error = torch.tensor([100.0, 1.0, 2.0, 6.0])[None, None, :, None, None].expand(2, *SHAPE)
    torch.testing.assert_close(drawn.mean_of_others(error), torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("sigma", [0.002, 1.0, 80.0])
def test_clean_frames_their_mask_and_their_level_are_those_of_the_sampler(sigma: float) -> None:
    """Whatever the sample's own noise: what FlowDenoiser shows to the network and tells it."""
    choices_KT = choices_of(PREDICT2, SHAPE[1])
    assert choices_KT is not None
    drawn = CleanGiven.drawn(unit(6)[:, :1], choices_KT, SHAPE)
    assert drawn.is_given_BT.sum(dim=1).unique().tolist() == [1, 2]
    x0, x = torch.randn(2, 6, *SHAPE, generator=torch.Generator().manual_seed(1))
    t = sigma / (1 + sigma)
    seen, told = drawn.put_into((1 - t) * x, x0), drawn.timesteps_BT(torch.full((6, SHAPE[1]), t))
    for k in range(6):
        shown: list[tuple[torch.Tensor, torch.Tensor]] = []

        def network(scaled: torch.Tensor, timesteps_T: torch.Tensor, into: list = shown) -> torch.Tensor:
            into.append((scaled, timesteps_T))
            return torch.zeros_like(scaled)

        frames = CleanFrames(x0[k : k + 1], drawn.is_given_BT[k])
        FlowDenoiser(network, frames)(x[k : k + 1], torch.tensor(sigma))
        [(scaled, timesteps_T)] = shown
        torch.testing.assert_close(seen[k : k + 1], scaled, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(told[k], timesteps_T, rtol=1e-6, atol=0)
        assert torch.equal(drawn.mask_B1THW(x0)[k : k + 1], frames.mask_B1THW)
    # 1e-4 in terms of sigma, spec/predict2-video2world.md 4.1
    assert float(told[0, 0]) == pytest.approx(1e-4 / 1.0001, rel=1e-6)


def test_how_a_family_sees_given_frames_is_said_by_the_children() -> None:
    with pytest.raises(NotImplementedError, match=r"Given\.drawn"):
        Given.drawn(unit(1), torch.ones(1, 4, dtype=torch.bool), SHAPE)
    with pytest.raises(NotImplementedError, match=r"Given\.numbers_needed"):
        Given.numbers_needed(SHAPE)
