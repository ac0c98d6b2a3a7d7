from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.models.common.dit.layers import modulate
from cosmos_nemo.models.common.dit.model import Positions
from cosmos_nemo.models.common.rope import rope_angles
from cosmos_nemo.models.cosmos1_dit.model import Cosmos1DiT
from tests.fakes import TINY, FakeGroup, tiny_network

LATENT = (2, 4, 10)
GRID = (2, 2, 5)
PLACES = [[t, h, w] for t in range(2) for h in range(2) for w in range(5)]


@pytest.fixture
def network() -> Cosmos1DiT:
    torch.manual_seed(1)
    return tiny_network()


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first argument of every call of `module` made inside."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    yield seen
    handle.remove()


def call(network: Cosmos1DiT, x: Tensor, text: Tensor, *, c_noise: Tensor, **options: object) -> Tensor:
    options = {"positions": network.positions(tuple(x.shape[2:]), fps=12)} | options  # type: ignore[arg-type]
    return network(
        x,
        modulation=network.modulate(c_noise),
        text=network.encode_text(text),
        **options,  # type: ignore[arg-type]
    )


def test_the_output_has_the_latents_shape_in_float32_whatever_the_weights_are() -> None:
    network = tiny_network(dtype=torch.bfloat16)
    out = call(network, torch.randn(1, 16, *LATENT), torch.randn(1, 12, 32), c_noise=torch.tensor([0.3]))
    assert out.shape == (1, 16, *LATENT)
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


def test_bfloat16_weights_give_the_output_to_a_few_per_cent(network: Cosmos1DiT) -> None:
    low = tiny_network(dtype=torch.bfloat16)
    x, text, c_noise = torch.randn(1, 16, *LATENT), torch.randn(1, 12, 32), torch.tensor([0.3])
    exact, rounded = call(network, x, text, c_noise=c_noise), call(low, x, text, c_noise=c_noise)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_batch_of_two_at_two_noise_levels_is_two_batches_of_one(network: Cosmos1DiT) -> None:
    x, text, c_noise = torch.randn(2, 16, *LATENT), torch.randn(2, 12, 32), torch.tensor([0.9, -1.2])
    both = call(network, x, text, c_noise=c_noise)
    for i in range(2):
        one = call(network, x[i : i + 1], text[i : i + 1], c_noise=c_noise[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], one, rtol=0, atol=2e-5)
    swapped = call(network, x, text, c_noise=c_noise.flip(0))
    assert (swapped - both).abs().max() > 1e-2


def test_modulation_is_one_row_per_sample_and_knows_no_token(network: Cosmos1DiT) -> None:
    both = network.modulate(torch.tensor([0.9, -1.2]))
    assert len(both.layers) == TINY.num_layers
    for i, c_noise in enumerate((0.9, -1.2)):
        one = network.modulate(torch.tensor([c_noise]))
        pairs = zip((*both.layers, (both.final,)), (*one.layers, (one.final,)), strict=True)
        for many, single in pairs:
            for two_rows, row in zip(sum(many, ()), sum(single, ()), strict=True):
                assert two_rows.shape == (2, 64)
                torch.testing.assert_close(two_rows[i : i + 1], row)


def test_text_keys_and_values_do_not_depend_on_the_noise_and_no_call_changes_them(
    network: Cosmos1DiT,
) -> None:
    text = torch.randn(1, 12, 32)
    first = network.encode_text(text)
    kept = [(k.clone(), v.clone()) for k, v in first]
    for c_noise in (0.9, -1.2):
        network(
            torch.randn(1, 16, *LATENT),
            modulation=network.modulate(torch.tensor([c_noise])),
            text=first,
            positions=network.positions(LATENT, fps=24),
        )
    for pairs in (first, network.encode_text(text)):
        for (k, v), (kept_k, kept_v) in zip(pairs, kept, strict=True):
            assert torch.equal(k, kept_k) and torch.equal(v, kept_v)
    assert len(first) == TINY.num_layers
    assert not torch.equal(first[0].k, first[1].k)


def test_text_of_too_few_layers_is_refused(network: Cosmos1DiT) -> None:
    text = network.encode_text(torch.randn(1, 12, 32))
    with pytest.raises(ValueError):
        network(
            torch.randn(1, 16, *LATENT),
            modulation=network.modulate(torch.tensor([0.3])),
            text=text[:1],
            positions=network.positions(LATENT, fps=24),
        )


def test_the_norm_of_the_timestep_adds_1e_6_and_not_1e_5(network: Cosmos1DiT) -> None:
    x = 1e-3 * torch.randn(3, 64)
    weight = network.affline_norm.weight
    wanted, wrong = (weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt() for eps in (1e-6, 1e-5))
    assert (wanted - wrong).abs().max() > 0.1
    torch.testing.assert_close(network.affline_norm(x), wanted)


def test_layers_are_modulated_by_the_normed_sinusoid_and_not_by_what_the_mlp_makes_of_it(
    network: Cosmos1DiT,
) -> None:
    timestep, shared = network.embed_timestep(torch.tensor([0.7]))
    angles = 0.7 * 10000 ** (-torch.arange(32) / 32)
    sinusoid = torch.cat([angles.cos(), angles.sin()])[None]
    torch.testing.assert_close(timestep, network.affline_norm(sinusoid), rtol=0, atol=1e-5)
    torch.testing.assert_close(shared, network.t_embedder[1](sinusoid), rtol=0, atol=1e-5)


def test_bfloat16_weights_round_the_sinusoid_and_not_the_time() -> None:
    low, exact = tiny_network(dtype=torch.bfloat16), tiny_network()
    with inputs_of(low.affline_norm) as rounded, inputs_of(exact.affline_norm) as full:
        for network in (low, exact):
            network.embed_timestep(torch.tensor([1.0955]))
    assert torch.equal(rounded[0], full[0].bfloat16())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_positions_reach_to_the_end_of_the_tables_and_no_further(axis: int) -> None:
    limits = (16, 24, 32)
    network = tiny_network(replace(TINY, max_latent_height=24))
    last = tuple(limit if i == axis else 2 for i, limit in enumerate(limits))
    t, h, w = last
    assert network.positions(last, fps=24).num_tokens == t * h * w // 4
    beyond = tuple(limit + 2 if i == axis else 2 for i, limit in enumerate(limits))
    with pytest.raises(ValueError, match="beyond") as refused:
        network.positions(beyond, fps=24)
    assert str(beyond) in str(refused.value) and str(limits) in str(refused.value)


def angles_of(positions: Positions) -> Tensor:
    return torch.atan2(positions.rope.sin, positions.rope.cos)


def test_the_frame_rate_stretches_the_time_angles_alone(network: Cosmos1DiT) -> None:
    positions = [network.positions(LATENT, fps=fps) for fps in (12, 24)]
    assert torch.equal(positions[0].learned_s1D, positions[1].learned_s1D)
    slow, base = (angles_of(one)[:, 0, 0] for one in positions)
    # Head width 16: of the first half 4 frequencies turn with time, 2 with rows, 2 with columns.
    assert not torch.allclose(slow[:, :4], base[:, :4])
    torch.testing.assert_close(slow[10:, 1:4], 2 * base[10:, 1:4])
    assert torch.equal(slow[:, 4:8], base[:, 4:8])


@pytest.mark.parametrize("ratios", [(2.0, 1.0, 1.0), (1.0, 3.0, 5.0)])
def test_rotary_angles_are_those_of_the_cards_grid_ratios_and_base_rate(
    ratios: tuple[float, float, float],
) -> None:
    network = tiny_network(replace(TINY, rope_ratios_THW=ratios, base_fps=30.0))
    wanted = rope_angles(GRID, head_dim=16, ratios_THW=ratios, fps=12, base_fps=30.0)
    rope = network.positions(LATENT, fps=12).rope
    assert torch.equal(rope.cos, wanted.cos()) and torch.equal(rope.sin, wanted.sin())


def test_the_rotary_dtype_rounds_the_angles_when_asked(network: Cosmos1DiT) -> None:
    assert network.rope_dtype == torch.float32
    network.rope_dtype = torch.bfloat16
    rounded = rope_angles(
        GRID, head_dim=16, ratios_THW=TINY.rope_ratios_THW, fps=12, base_fps=24.0, dtype=torch.bfloat16
    )
    rope = network.positions(LATENT, fps=12).rope
    assert torch.equal(rope.cos, rounded.cos())
    assert rope.cos.dtype == torch.float32


def test_learned_positions_run_over_columns_then_rows_then_frames(network: Cosmos1DiT) -> None:
    found = network.positions(LATENT, fps=24).learned_s1D
    assert torch.equal(found, network.extra_pos_embedder(torch.tensor(PLACES)))


def shares(network: Cosmos1DiT, latent_THW: tuple[int, int, int]) -> Iterator[Positions]:
    """Positions on each of three ranks; the network then believes to be that rank."""
    for rank in range(3):
        network.cp = FakeGroup(3, rank)  # type: ignore[assignment]
        yield network.positions(latent_THW, fps=12)


def test_ranks_share_the_positions_of_all_tokens_and_the_last_is_padded(network: Cosmos1DiT) -> None:
    whole = network.positions(LATENT, fps=12)
    parts = list(shares(network, LATENT))
    assert {part.num_tokens for part in parts} == {20}
    assert {len(part.rope.cos) for part in parts} == {7} == {len(part.learned_s1D) for part in parts}
    for i in range(2):
        assert torch.equal(torch.cat([part.rope[i] for part in parts])[:20], whole.rope[i])
    learned = torch.cat([part.learned_s1D for part in parts])
    assert torch.equal(learned[:20], whole.learned_s1D)
    assert torch.equal(learned[20], whole.learned_s1D[19])


def test_a_rank_with_nothing_but_padding_still_has_places(network: Cosmos1DiT) -> None:
    lengths = [(len(part.rope.cos), len(part.learned_s1D)) for part in shares(network, (1, 4, 4))]
    assert lengths == [(2, 2)] * 3  # 4 tokens


def test_ranks_share_the_embedded_patches_and_padding_is_zero(network: Cosmos1DiT) -> None:
    x = torch.randn(2, 16, *LATENT)
    whole = network.embed_patches(x)
    parts = [network.embed_patches(x) for _ in shares(network, LATENT)]
    assert {part.shape for part in parts} == {(7, 2, 64)}
    joined = torch.cat(parts)
    torch.testing.assert_close(joined[:20], whole)
    assert torch.equal(joined[20], torch.zeros(2, 64))


def patches_of(network: Cosmos1DiT, x: Tensor, **masks: Tensor) -> Tensor:
    """What enters the patch embedding, with its channels apart: [S, B, C, 4]."""
    with inputs_of(network.x_embedder) as seen:
        network.embed_patches(x, **masks)  # type: ignore[arg-type]
    return seen[0].unflatten(-1, (-1, 4))


def test_a_padding_mask_is_the_last_channel_resized_to_the_nearest_pixel_on_every_frame(
    network: Cosmos1DiT,
) -> None:
    x = torch.randn(1, 16, *LATENT)
    mask = torch.arange(32.0 * 80).reshape(1, 1, 32, 80)
    patches = patches_of(network, x, padding_mask_B1HW=mask)
    assert patches.shape == (20, 1, 17, 4)
    for token, (_, h, w) in enumerate(PLACES):
        corners = [mask[0, 0, 8 * (2 * h + i), 8 * (2 * w + j)].item() for i in (0, 1) for j in (0, 1)]
        assert patches[token, 0, 16].tolist() == corners


def test_without_a_padding_mask_its_channel_is_zero_and_the_others_are_the_latent(
    network: Cosmos1DiT,
) -> None:
    x = torch.randn(1, 16, *LATENT)
    patches = patches_of(network, x)
    assert torch.equal(patches[:, :, 16], torch.zeros(20, 1, 4))
    for token, (t, h, w) in enumerate(PLACES):
        patch = x[0, :, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        assert torch.equal(patches[token, 0, :16], patch.flatten(1))


def test_the_given_mask_comes_between_the_latent_and_the_padding_mask() -> None:
    network = tiny_network(replace(TINY, takes_given_mask=True))
    given = torch.zeros(1, 1, *LATENT, dtype=torch.bool)
    given[:, :, 0] = True
    mask = torch.full((1, 1, 32, 80), 3.0)
    patches = patches_of(network, torch.randn(1, 16, *LATENT), given_mask_B1THW=given, padding_mask_B1HW=mask)
    assert patches.shape == (20, 1, 18, 4)
    assert torch.equal(patches[:, 0, 16], torch.tensor([1.0] * 10 + [0.0] * 10)[:, None].expand(20, 4))
    assert torch.equal(patches[:, 0, 17], torch.full((20, 4), 3.0))


@pytest.mark.parametrize("takes", [False, True])
def test_the_given_mask_is_given_exactly_when_the_network_takes_one(takes: bool) -> None:
    network = tiny_network(replace(TINY, takes_given_mask=takes))
    mask = None if takes else torch.zeros(1, 1, *LATENT)
    with pytest.raises(AssertionError):
        network.embed_patches(torch.randn(1, 16, *LATENT), given_mask_B1THW=mask)


@pytest.mark.parametrize("mask", ["padding_mask_B1HW", "given_mask_B1THW"])
def test_a_call_hands_its_masks_to_the_patches(mask: str) -> None:
    network = tiny_network(replace(TINY, takes_given_mask=True))
    x, text, c_noise = torch.randn(1, 16, *LATENT), torch.randn(1, 12, 32), torch.tensor([0.3])
    masks = {"padding_mask_B1HW": torch.zeros(1, 1, 32, 80), "given_mask_B1THW": torch.zeros(1, 1, *LATENT)}
    before = call(network, x, text, c_noise=c_noise, **masks)
    after = call(network, x, text, c_noise=c_noise, **masks | {mask: torch.ones_like(masks[mask])})
    assert (after - before).abs().max() > 1e-2


def test_the_position_table_is_added_again_at_the_start_of_every_layer(network: Cosmos1DiT) -> None:
    x, text, c_noise = torch.randn(1, 16, *LATENT), torch.randn(1, 12, 32), torch.tensor([0.3])
    positions, modulation = network.positions(LATENT, fps=12), network.modulate(c_noise)
    for layer, by in zip(network.decoder, modulation.layers, strict=True):
        with inputs_of(layer) as hidden, inputs_of(layer.full_self_attention) as attended:
            call(network, x, text, c_noise=c_noise)
        wanted = modulate(hidden[0] + positions.learned_s1D, by.self_attention)
        torch.testing.assert_close(attended[0], wanted)
        without = modulate(hidden[0], by.self_attention)
        assert (wanted - without).abs().max() > 0.1


def test_a_row_of_a_position_table_reaches_at_first_only_the_tokens_there(network: Cosmos1DiT) -> None:
    x, text, c_noise = torch.randn(1, 16, *LATENT), torch.randn(1, 12, 32), torch.tensor([0.3])
    for axis, name in enumerate(("pos_emb_t", "pos_emb_h", "pos_emb_w")):
        attended = []
        for _ in range(2):
            with inputs_of(network.decoder.layers[0].full_self_attention) as seen:
                call(network, x, text, c_noise=c_noise)
            attended.append(seen[0])
            getattr(network.extra_pos_embedder, name)[1] += torch.randn(64)
        changed = (attended[0] != attended[1]).any(-1).flatten().tolist()
        assert changed == [place[axis] == 1 for place in PLACES], name


def test_layers_run_in_order_and_each_has_its_own_weights(network: Cosmos1DiT) -> None:
    order: list[int] = []
    for i, layer in enumerate(network.decoder):
        layer.register_forward_hook(lambda *_, i=i: order.append(i))
    call(network, torch.randn(1, 16, *LATENT), torch.randn(1, 12, 32), c_noise=torch.tensor([0.3]))
    assert order == [0, 1]
    first, second = (layer.mlp.linear_fc1.weight for layer in network.decoder)
    assert first.data_ptr() != second.data_ptr()
