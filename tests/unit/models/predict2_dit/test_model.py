"""What Predict2's network does that Predict1's does not; the numbers are held by golden/predict2_*."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import Family
from cosmos_nemo.models.common.dit.model import DiT, NetworkModulation
from cosmos_nemo.models.common.rope import rope_angles
from cosmos_nemo.models.predict2_dit.model import Predict2DiT
from tests.fakes import TINY, FakeGroup, tiny_network

SHAPE = replace(TINY, family=Family.PREDICT2, takes_given_mask=True, rope_ratios_THW=(1.0, 3.0, 3.0))
LATENT = (5, 4, 6)
GIVEN, NOISY = 1e-4, 0.7


@pytest.fixture
def network() -> DiT:
    return tiny_network(SHAPE, seed=3)


def call(network: DiT, x: Tensor, text: Tensor, modulation: NetworkModulation, *, fps: float = 24) -> Tensor:
    return network(
        x,
        modulation=modulation,
        text=network.encode_text(text),
        positions=network.positions(LATENT, fps=fps),
        given_mask_B1THW=torch.zeros(len(x), 1, *LATENT),
    )


def some_inputs(batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(batch, 16, *LATENT, generator=generator), torch.randn(
        batch, 12, 32, generator=generator
    )


def test_it_has_no_position_tables(network: DiT) -> None:
    assert isinstance(network, Predict2DiT)
    assert not any("pos_emb" in name for name, _ in network.named_parameters())
    assert network.positions(LATENT, fps=24).learned_s1D is None


def test_frames_that_follow_each_other_at_one_level_are_one_row_of_the_modulation(network: DiT) -> None:
    found = network.modulate(torch.tensor([[GIVEN, GIVEN, NOISY, NOISY, NOISY]]))
    assert found.frames == (2, 3)
    assert found.final.shift.shape == (2, 1, 64) == found.layers[0].mlp.gate.shape
    assert network.modulate(torch.full((1, 5), NOISY)).frames == (5,)


@pytest.mark.parametrize("levels", [(GIVEN, NOISY, NOISY, NOISY, NOISY), (GIVEN, NOISY, GIVEN, 0.2, 0.2)])
def test_rows_that_are_shared_change_nothing(network: DiT, levels: tuple[float, ...]) -> None:
    """Against a row for every frame, which needs no counting of equal ones."""
    x, text = some_inputs()
    timesteps_BT = torch.tensor([levels])
    apart = network.modulated_by(timesteps_BT.T, frames=(1,) * len(levels))
    found = call(network, x, text, network.modulate(timesteps_BT))
    torch.testing.assert_close(found, call(network, x, text, apart), rtol=0, atol=1e-5)
    other = call(network, x, text, network.modulate(torch.full((1, 5), NOISY)))
    assert (found - other).abs().max() > 1e-2


def test_a_frames_level_reaches_its_own_tokens_in_the_last_layer(network: DiT) -> None:
    """With layers that add nothing, a frame's output hangs on its own level alone."""
    x, text = some_inputs()
    base, changed = (
        network.modulated_by(torch.tensor([[GIVEN], [NOISY], [level]]), frames=(1, 3, 1))
        for level in (0.3, 0.9)
    )
    still = [layer._replace(**{n: z._replace(gate=0 * z.gate) for n, z in layer._asdict().items()})
             for layer in base.layers]  # fmt: skip
    outputs = [call(network, x, text, each._replace(layers=still)) for each in (base, changed)]
    assert torch.equal(outputs[0][:, :, :4], outputs[1][:, :, :4])
    assert (outputs[0][:, :, 4] - outputs[1][:, :, 4]).abs().max() > 1e-2


def test_samples_of_a_batch_have_levels_of_their_own(network: DiT) -> None:
    x, text = some_inputs(2)
    timesteps_BT = torch.tensor([[GIVEN, 0.9, 0.9, 0.9, 0.9], [0.1, 0.4, 0.4, 0.4, 0.4]])
    both = call(network, x, text, network.modulate(timesteps_BT))
    for i in range(2):
        one = slice(i, i + 1)
        alone = call(network, x[one], text[one], network.modulate(timesteps_BT[one]))
        torch.testing.assert_close(both[one], alone, rtol=0, atol=2e-5)


def test_samples_that_are_given_one_frame_and_two_share_only_the_runs_that_both_have(network: DiT) -> None:
    """As in training: a row begins wherever the level of any sample changes."""
    x, text = some_inputs(2)
    timesteps_BT = torch.tensor([[GIVEN, 0.9, 0.9, 0.9, 0.9], [GIVEN, GIVEN, 0.4, 0.4, 0.4]])
    modulation = network.modulate(timesteps_BT)
    assert modulation.frames == (1, 1, 3)
    both = call(network, x, text, modulation)
    for i in range(2):
        one = slice(i, i + 1)
        alone = call(network, x[one], text[one], network.modulate(timesteps_BT[one]))
        torch.testing.assert_close(both[one], alone, rtol=0, atol=2e-5)


def test_angles_count_frames_whatever_their_rate(network: DiT) -> None:
    slow, fast = (network.positions(LATENT, fps=fps).rope for fps in (10, 24))
    assert torch.equal(slow.cos, fast.cos) and torch.equal(slow.sin, fast.sin)
    wanted = rope_angles((5, 2, 3), head_dim=16, ratios_THW=(1.0, 3.0, 3.0), fps=24, base_fps=24)
    torch.testing.assert_close(torch.atan2(fast.sin, fast.cos), torch.atan2(wanted.sin(), wanted.cos()))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 40])
def test_ranks_share_the_runs_of_tokens_and_padding_goes_with_the_last(network: DiT, ranks: int) -> None:
    modulation = network.modulate(torch.tensor([[GIVEN, GIVEN, NOISY, NOISY, NOISY]]))
    rows: list[int] = []
    for rank in range(ranks):
        network.cp = FakeGroup(ranks, rank)  # type: ignore[assignment]
        positions = network.positions(LATENT, fps=24)
        runs = network.runs_of(modulation, positions)
        assert runs is not None and len(runs.lengths) == 2 and sum(runs.lengths) == len(positions.rope.cos)
        assert runs.row_of_token.tolist() == [row for row, run in enumerate(runs.lengths) for _ in range(run)]
        rows += runs.row_of_token.tolist()
    assert rows[:30] == [0] * 12 + [1] * 18
    assert set(rows[30:]) <= {1}


def test_levels_of_another_number_of_frames_are_refused(network: DiT) -> None:
    x, text = some_inputs()
    with pytest.raises(AssertionError, match="noise levels of 4 frames for 5"):
        call(network, x, text, network.modulate(torch.full((1, 4), NOISY)))


def test_gradients_reach_every_parameter_through_the_runs() -> None:
    network = tiny_network(SHAPE, seed=3).requires_grad_(True)
    x, text = some_inputs()
    found = call(network, x, text, network.modulate(torch.tensor([[GIVEN, NOISY, NOISY, NOISY, NOISY]])))
    found.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
