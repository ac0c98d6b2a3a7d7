from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.models.discrete_tokenizer.model import DiscreteTokenizer, build_autoencoder
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.tools.standin_discrete_tokenizer import random_discrete_weights

TINY = DiscreteTokenizerShape(channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, latent_channels=5)
OTHER_SIZES = [
    TINY,
    replace(TINY, spatial_compression=8),
    replace(TINY, patch_size=2, spatial_compression=8, temporal_compression=4),
    replace(TINY, channel_multipliers=(1, 2, 2, 1), spatial_compression=32, levels=(7, 4, 2)),
]


def tokenizer_of(
    shape: DiscreteTokenizerShape = TINY, dtype: torch.dtype = torch.float32
) -> DiscreteTokenizer:
    autoencoder = build_autoencoder(shape, device="cpu", dtype=dtype)
    weights = random_discrete_weights(shape, seed=0)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[name])
    return DiscreteTokenizer(autoencoder, levels=shape.levels)


def video_of(frames: int, *, height: int = 32, width: int = 64, batch: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return 2 * torch.rand(batch, 3, frames, height, width, generator=draw) - 1


def ids_like(*sizes: int, count: int = 64000) -> Tensor:
    return torch.randint(count, sizes, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", OTHER_SIZES)
@pytest.mark.parametrize("latent_frames", [1, 2, 4])
def test_ids_have_the_size_of_the_latent_and_decode_to_the_size_of_the_video(
    latent_frames: int, shape: DiscreteTokenizerShape
) -> None:
    space = shape.spatial_compression
    frames = 1 + shape.temporal_compression * (latent_frames - 1)
    tokenizer = tokenizer_of(shape)
    video = video_of(frames, height=space, width=2 * space, batch=2)
    ids = tokenizer.encode(video)
    assert ids.shape == (2, latent_frames, 1, 2) and ids.dtype == torch.int64
    assert tokenizer.decode(ids).shape == video.shape


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_frames_that_follow_change_nothing_in_the_ids_of_a_beginning(frames: int) -> None:
    tokenizer, whole = tokenizer_of(), video_of(33)
    beginning = tokenizer.encode(whole[:, :, :frames])
    assert len(beginning.unique()) > beginning.numel() / 2
    assert torch.equal(tokenizer.encode(whole)[:, : 1 + frames // 8], beginning)
    padded = whole.clone()
    padded[:, :, frames:] = padded[:, :, frames - 1 : frames]
    assert torch.equal(tokenizer.encode(padded)[:, : 1 + frames // 8], beginning)
    if frames < 17:
        whole[:, :, frames // 2 : frames] = 0.9
        assert not torch.equal(tokenizer.encode(whole)[:, : 1 + frames // 8], beginning)


def test_the_decoder_doubles_what_the_encoder_halves_in_the_mirrored_order() -> None:
    tokenizer = tokenizer_of()
    sizes: dict[str, list[tuple[int, ...]]] = {"down": [], "up": []}
    encoder, decoder = tokenizer.autoencoder.encoder, tokenizer.autoencoder.decoder
    for block in encoder.down_blocks[:-1]:
        block.downsamplers[0].conv3.register_forward_hook(
            lambda *call: sizes["down"].append(tuple(call[2].shape[2:]))
        )
    for block in decoder.up_blocks[:-1]:
        block.upsamplers[0].conv3.register_forward_hook(
            lambda *call: sizes["up"].append(tuple(call[2].shape[2:]))
        )
    encoder(video_of(17, height=32, width=32))
    with torch.no_grad():
        decoder(torch.zeros(1, 5, 3, 2, 2))
    assert sizes["down"] == [(3, 4, 4), (3, 2, 2)]  # from (5, 8, 8), the patches
    assert [size[1:] for size in sizes["up"]] == [(4, 4), (8, 8)]
    assert sizes["up"] == [(3, 4, 4), (5, 8, 8)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pieces_are_the_unsplit_decode(size: int) -> None:
    tokenizer, ids = tokenizer_of(), ids_like(1, 3, 2, 3)
    whole = tokenizer.decode(ids)
    pieces = list(tokenizer.decode_pieces(ids, frames_per_piece=size))
    assert pieces[0].shape[2] == 8 * size - 7
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=1e-5, atol=1e-5)


def test_the_decode_is_that_of_diffusers_decoder() -> None:
    from cosmos_nemo.models.discrete_tokenizer.fsq import codes_of

    tokenizer, ids = tokenizer_of(), ids_like(2, 3, 2, 3)
    autoencoder = tokenizer.autoencoder
    with torch.no_grad():
        wanted = autoencoder.decoder(autoencoder.post_quant_conv(codes_of(ids, TINY.levels)))
    torch.testing.assert_close(tokenizer.decode(ids), wanted, rtol=1e-5, atol=1e-5)


def test_a_token_shows_at_its_place_and_never_before() -> None:
    tokenizer, ids = tokenizer_of(), ids_like(1, 3, 2, 3)
    changed = ids.clone()
    changed[0, 1] = (changed[0, 1] + 777) % 64000
    before, after = tokenizer.decode(ids), tokenizer.decode(changed)
    assert torch.equal(before[:, :, 0], after[:, :, 0])
    assert not torch.allclose(before[:, :, 1:9], after[:, :, 1:9], atol=1e-3)


def test_bfloat16_moves_digits_by_one_only_and_keeps_most() -> None:
    video = video_of(9, height=64, width=64)
    exact, rounded = tokenizer_of(), tokenizer_of(dtype=torch.bfloat16)
    z_exact, z_rounded = exact.encode_unrounded(video), rounded.encode_unrounded(video)
    assert z_rounded.dtype == torch.float32
    assert 0 < (z_rounded - z_exact).norm() < 0.03 * z_exact.norm()
    ids = rounded.encode(video)
    assert ids.dtype == torch.int64
    bases = torch.tensor([1, 8, 64, 512, 2560, 12800])
    levels = torch.tensor(TINY.levels)
    digits_exact, digits_rounded = (made[..., None] // bases % levels for made in (exact.encode(video), ids))
    assert (digits_exact - digits_rounded).abs().max() <= 1
    assert (digits_exact == digits_rounded).float().mean() > 0.9
    decoded = rounded.decode(ids)
    assert decoded.dtype == torch.bfloat16
    assert (decoded.float() - exact.decode(ids)).norm() < 0.03 * decoded.float().norm()


def test_levels_are_those_of_the_released_arithmetic_in_bfloat16_or_one_below() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    video = every[every.isfinite()]
    released = ((video * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    ours = to_uint8(video.view(1, 1, 1, 1, -1)).flatten()
    assert set((released.int() - ours.int()).tolist()) == {0, 1}


def test_a_network_built_on_meta_takes_no_memory() -> None:
    autoencoder = build_autoencoder(DiscreteTokenizerShape(), device="meta", dtype=torch.bfloat16)
    assert all(parameter.is_meta for parameter in autoencoder.parameters())
    assert {parameter.dtype for parameter in autoencoder.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    assert autoencoder.quant_conv.weight.shape == (6, 16, 1, 1, 1)
    assert autoencoder.post_quant_conv.weight.shape == (16, 6, 1, 1, 1)
    counts = {name: parameters(getattr(autoencoder, name)) for name in ("encoder", "decoder")}
    assert {name: round(count / 1e6, 1) for name, count in counts.items()} == {
        "encoder": 45.5,
        "decoder": 65.4,
    }


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("part", "call", "complaint"),
    [
        ("decoder", lambda tokenizer: tokenizer.encode(video_of(1)), "without its encoder"),
        ("encoder", lambda tokenizer: tokenizer.decode(ids_like(1, 1, 2, 2)), "without its decoder"),
    ],
)
def test_a_part_alone_has_no_other_weights_and_says_what_it_cannot_do(
    part: str, call: Callable[[DiscreteTokenizer], Tensor], complaint: str
) -> None:
    autoencoder = build_autoencoder(TINY, device="cpu", dtype=torch.float32, parts=(part,))
    own = {"encoder": {"encoder", "quant_conv"}, "decoder": {"decoder", "post_quant_conv"}}[part]
    assert {name.split(".")[0] for name, _ in autoencoder.named_parameters()} == own
    with pytest.raises(ValueError, match=complaint):
        call(DiscreteTokenizer(autoencoder, levels=TINY.levels))


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ((1, 3, 8, 32, 32), "8 frames: the tokenizer takes 8k"),
        ((1, 3, 0, 32, 32), "0 frames"),
        ((1, 3, 9, 32, 40), "40x32 pixels: the tokenizer takes multiples of 16"),
        ((1, 3, 9, 24, 32), "32x24 pixels"),
        ((1, 3, 9, 0, 32), "32x0 pixels"),
        ((1, 4, 9, 32, 32), r"no \[B, 3"),
        ((3, 9, 32, 32), r"no \[B, 3"),
    ],
)
def test_a_video_that_does_not_fit_is_refused(sizes: tuple[int, ...], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        tokenizer_of().encode(torch.zeros(sizes))


@pytest.mark.parametrize("sizes", [(1, 12), (1, 6, 3, 2, 2), (1, 0, 2, 2), (1, 2, 0, 2)])
def test_ids_of_another_shape_are_refused_at_the_call(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"no \[B, T, H, W\]"):
        tokenizer_of().decode_pieces(torch.zeros(sizes, dtype=torch.int64))


def test_ids_out_of_range_are_refused_at_the_call() -> None:
    ids = ids_like(1, 2, 2, 2)
    ids[0, 1, 1, 0] = 64002
    with pytest.raises(ValueError, match="id 64002 is no video token"):
        tokenizer_of().decode_pieces(ids)


def test_a_piece_of_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="frames_per_piece is 0"):
        tokenizer_of().decode(ids_like(1, 2, 2, 2), frames_per_piece=0)
