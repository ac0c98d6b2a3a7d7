from dataclasses import replace

import pytest
import torch

from cosmos_nemo.models.cosmos1_dit.model import Cosmos1DiT
from tests.fakes import TINY, FakeGroup, tiny_network

LATENT = (3, 6, 10)


def _forward(network: Cosmos1DiT, x: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(len(x), 12, 32, generator=generator)
    return network(
        x,
        modulation=network.modulate(torch.linspace(0.1, 0.9, len(x))),
        text=network.encode_text(text),
        positions=network.positions((x.shape[2], x.shape[3], x.shape[4]), fps=24),
        **masks,
    )


def _noise(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, *LATENT, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("latent", [(17, 6, 10), (3, 34, 10), (3, 6, 34)])
def test_positions_beyond_the_tables_are_refused(latent: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="beyond the model's"):
        tiny_network().positions(latent, fps=24)


def test_each_context_parallel_rank_has_the_positions_of_its_own_tokens() -> None:
    network = tiny_network()
    whole = network.positions(LATENT, fps=12)
    shares = []
    for rank in range(4):
        network.cp = FakeGroup(4, rank)  # type: ignore[assignment]
        shares.append(network.positions(LATENT, fps=12))
    assert whole.num_tokens == 45 and all(len(share.learned_s1D) == 12 for share in shares)
    assert torch.equal(torch.cat([share.learned_s1D for share in shares])[:45], whole.learned_s1D)
    assert torch.equal(torch.cat([share.rope.cos for share in shares])[:45], whole.rope.cos)


def test_each_context_parallel_rank_embeds_its_own_patches() -> None:
    network = tiny_network()
    whole = network.embed_patches(_noise())
    shares = []
    for rank in range(4):
        network.cp = FakeGroup(4, rank)  # type: ignore[assignment]
        shares.append(network.embed_patches(_noise()))
    torch.testing.assert_close(torch.cat(shares)[:45], whole)


def test_the_frame_rate_changes_the_output() -> None:
    network = tiny_network()
    slow, fast = (network.positions(LATENT, fps=fps) for fps in (12, 24))
    assert not torch.equal(slow.rope.cos, fast.rope.cos)
    assert torch.equal(slow.learned_s1D, fast.learned_s1D)


def test_no_padding_mask_is_a_mask_of_zeros_and_ones_change_the_output() -> None:
    network = tiny_network()
    plain = _forward(network, _noise())
    zeros, ones = (torch.full((1, 1, 48, 80), value) for value in (0.0, 1.0))
    assert torch.equal(plain, _forward(network, _noise(), padding_mask_B1HW=zeros))
    assert not torch.allclose(plain, _forward(network, _noise(), padding_mask_B1HW=ones))


def test_the_padding_mask_is_taken_at_the_nearest_pixel() -> None:
    network = tiny_network()
    mask = torch.zeros(1, 1, 48, 80)
    mask[..., ::8, ::8] = 1  # the pixels that nearest takes of cells of 8 x 8
    ones = torch.ones(1, 1, 48, 80)
    assert torch.equal(
        network.embed_patches(_noise(), padding_mask_B1HW=mask),
        network.embed_patches(_noise(), padding_mask_B1HW=ones),
    )


def test_a_given_mask_is_asked_of_the_network_that_has_it_and_of_no_other() -> None:
    mask = torch.zeros(1, 1, *LATENT)
    with pytest.raises(AssertionError):
        _forward(tiny_network(), _noise(), given_mask_B1THW=mask)
    told = tiny_network(replace(TINY, takes_given_mask=True))
    with pytest.raises(AssertionError):
        _forward(told, _noise())
    mask[:, :, 0] = 1
    assert not torch.allclose(
        _forward(told, _noise(), given_mask_B1THW=mask), _forward(told, _noise(), given_mask_B1THW=0 * mask)
    )


def test_the_output_is_float32_whatever_the_weights_are() -> None:
    assert _forward(tiny_network(dtype=torch.bfloat16), _noise()).dtype == torch.float32


def test_every_layer_counts() -> None:
    network = tiny_network()
    before = _forward(network, _noise())
    for layer in network.decoder:
        layer.mlp.linear_fc2.weight.mul_(0.5)
        after = _forward(network, _noise())
        assert not torch.allclose(before, after)
        before = after
