from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_nemo.catalog import Family
from cosmos_nemo.models.common.dit.embeddings import patchify
from cosmos_nemo.models.token_dit.model import TokenDiT
from tests.fakes import TINY, tiny_network

SHAPE = replace(
    TINY, family=Family.TOKEN_DECODER, token_vocab=50, token_dim=6, rope_ratios_THW=(1.0, 1.5, 1.5)
)
LATENT = (3, 4, 8)


@pytest.fixture
def network() -> TokenDiT:
    made = tiny_network(SHAPE, seed=1)
    assert isinstance(made, TokenDiT)
    return made


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(50, (1, 3, 2, 4), generator=torch.Generator().manual_seed(0))


def call(network: TokenDiT, x: Tensor, ids: Tensor, *, fps: float = 24, c_noise: float = 0.3) -> Tensor:
    output: Tensor = network(
        x,
        modulation=network.modulate(torch.tensor([c_noise])),
        text=network.encode_text(torch.ones(1, 12, 32)),
        positions=network.positions((x.shape[2], x.shape[3], x.shape[4]), fps=fps),
        told_BCTHW=network.embed_ids(ids, (x.shape[3], x.shape[4])),
    )
    return output


def test_a_cell_between_two_tokens_has_three_quarters_of_the_nearer(network: TokenDiT) -> None:
    ids = torch.tensor([[[[3, 7, 9]]]])
    told = network.embed_ids(ids, (2, 6))
    a, b, c = network.token_embedder.weight[[3, 7, 9]]
    wanted = torch.stack([a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, 0.75 * b + 0.25 * c])
    assert told.shape == (1, 6, 1, 2, 6)
    for row in range(2):
        torch.testing.assert_close(told[0, :, 0, row, :4].T, wanted)
        torch.testing.assert_close(told[0, :, 0, row, 5], c)


def test_it_is_the_resize_of_the_released_script_which_smooths_what_it_makes_smaller(
    network: TokenDiT, ids: Tensor
) -> None:
    frames = network.token_embedder(ids)[0].permute(0, 3, 1, 2)
    smoothed = F.interpolate(frames, size=(4, 8), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(network.embed_ids(ids, (4, 8))[0].transpose(0, 1), smoothed)


def test_frames_of_tokens_do_not_mix(network: TokenDiT, ids: Tensor) -> None:
    whole = network.embed_ids(ids, (4, 8))
    for frame in range(3):
        assert torch.equal(network.embed_ids(ids[:, frame : frame + 1], (4, 8))[:, :, 0], whole[:, :, frame])


def test_bfloat16_tokens_are_interpolated_in_float32_and_rounded_once(ids: Tensor) -> None:
    low = tiny_network(SHAPE, seed=1, dtype=torch.bfloat16)
    assert isinstance(low, TokenDiT)
    frames = low.token_embedder(ids)[0].permute(0, 3, 1, 2).float()
    wanted = F.interpolate(frames, size=(4, 8), mode="bilinear").bfloat16()
    assert torch.equal(low.embed_ids(ids, (4, 8))[0].transpose(0, 1), wanted)


def test_channels_are_the_latent_then_the_tokens_then_the_padding_mask(
    network: TokenDiT, ids: Tensor
) -> None:
    x, told = torch.randn(1, 16, *LATENT), network.embed_ids(ids, (4, 8))
    padding = torch.ones(1, 1, 32, 64)
    channels = torch.cat([x, told, torch.ones(1, 1, *LATENT)], dim=1)
    wanted = F.linear(patchify(channels, 2), network.x_embedder.proj[1].weight)
    found = network.embed_patches(x, padding_mask_B1HW=padding, told_BCTHW=told)
    assert network.x_embedder.proj[1].weight.shape == (64, 92)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("wrong", [-1, 50, 64000])
def test_an_id_that_there_is_not_is_refused_with_a_sentence(network: TokenDiT, wrong: int) -> None:
    ids = torch.tensor([[[[3, wrong]]]])
    with pytest.raises(ValueError, match=r"go from 0 to 49: they are another tokenizer's"):
        network.embed_ids(ids, (2, 4))


def test_ids_of_any_integer_type_are_taken(network: TokenDiT, ids: Tensor) -> None:
    for dtype in (torch.int16, torch.int32, torch.uint8):
        assert torch.equal(network.embed_ids(ids.to(dtype), (4, 8)), network.embed_ids(ids, (4, 8)))


def test_the_first_token_is_told_as_any_other(network: TokenDiT) -> None:
    nothing = network.embed_ids(torch.zeros(1, 1, 1, 1, dtype=torch.long), (2, 2))
    assert torch.equal(nothing[0, :, 0, 0, 0], network.token_embedder.weight[0])
    assert nothing.abs().max() > 0.1


def test_one_token_changes_what_comes_out_of_its_own_place_most(network: TokenDiT, ids: Tensor) -> None:
    x, other = torch.randn(1, 16, *LATENT), ids.clone()
    other[0, 1, 1, 2] = (ids[0, 1, 1, 2] + 1) % 50
    change = (call(network, x, other) - call(network, x, ids)).abs().mean(dim=(0, 1))
    own = change[1, 2:4, 4:6].mean()
    assert own > 1e-3
    assert own > 2 * change[[0, 2]].mean()


def test_there_are_no_tables_of_positions_and_angles_follow_the_frame_rate(
    network: TokenDiT, ids: Tensor
) -> None:
    assert network.positions(LATENT, fps=24).learned_s1D is None
    x = torch.randn(1, 16, *LATENT)
    assert (call(network, x, ids, fps=12) - call(network, x, ids)).abs().max() > 1e-3
    assert (call(network, x, ids, c_noise=0.9) - call(network, x, ids)).abs().max() > 1e-2


def fails(work: Callable[[], object]) -> bool:
    try:
        work()
    except AssertionError:
        return True
    return False


def test_tokens_are_for_this_network_and_no_other(network: TokenDiT, ids: Tensor) -> None:
    x, other = torch.randn(1, 16, *LATENT), tiny_network()
    told = network.embed_ids(ids, (4, 8))
    assert fails(lambda: network.embed_patches(x))
    assert fails(lambda: other.embed_patches(x, told_BCTHW=told))
    assert not fails(lambda: network.embed_patches(x, told_BCTHW=told))
