from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.models.wan_tokenizer import streaming
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer, build_autoencoder
from cosmos_nemo.tools.standin_wan_tokenizer import random_weights

TINY = WanTokenizerShape(channels=8, channel_multipliers=(1, 2, 2, 2), num_res_blocks=1)
OTHERS = [
    WanTokenizerShape(
        channels=4,
        channel_multipliers=(1, 2, 2),
        latent_channels=4,
        halves_time=(True, True),
        spatial_compression=4,
    ),
    WanTokenizerShape(
        channels=4, latent_channels=6, halves_time=(False, True, False), temporal_compression=2
    ),
    WanTokenizerShape(channels=4, latent_channels=4, halves_time=(True, True, True), temporal_compression=8),
]

Build = Callable[..., WanTokenizer]


def fill(autoencoder: nn.Module, shape: WanTokenizerShape) -> None:
    weights = random_weights(shape, seed=0)
    with torch.no_grad():
        for name, parameter in autoencoder.named_parameters():
            parameter.copy_(weights[name])


def statistics_of(shape: WanTokenizerShape) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    count = shape.latent_channels
    return {
        "mean_C": torch.randn(count, generator=draw),
        "std_C": 0.5 + torch.rand(count, generator=draw),
    }


def built(shape: WanTokenizerShape = TINY, dtype: torch.dtype = torch.float32) -> WanTokenizer:
    autoencoder = build_autoencoder(shape, device="cpu", dtype=dtype)
    fill(autoencoder, shape)
    return WanTokenizer(autoencoder, **statistics_of(shape))


@pytest.fixture(scope="module")
def tokenizer() -> WanTokenizer:
    return built()


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """Built the ordinary way: on the CPU, with diffusers' own call of the same sizes."""
    from diffusers import AutoencoderKLWan

    autoencoder = AutoencoderKLWan(
        base_dim=TINY.channels, dim_mult=list(TINY.channel_multipliers), num_res_blocks=TINY.num_res_blocks
    )
    fill(autoencoder, TINY)
    return autoencoder.eval()


def video_of(frames: int, *, height: int = 16, width: int = 24) -> Tensor:
    return 2 * torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(2)) - 1


def latent_of(frames: int, *, channels: int = 16) -> Tensor:
    return torch.randn(1, channels, frames, 2, 3, generator=torch.Generator().manual_seed(3))


def over_latent(values_C: Tensor) -> Tensor:
    return values_C[:, None, None, None]


def test_a_network_built_on_meta_takes_no_memory() -> None:
    autoencoder = build_autoencoder(TINY, device="meta", dtype=torch.bfloat16)
    assert all(parameter.is_meta for parameter in autoencoder.parameters())
    assert {parameter.dtype for parameter in autoencoder.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("shape", [TINY, *OTHERS])
def test_the_network_holds_no_values_but_those_that_a_file_gives(shape: WanTokenizerShape) -> None:
    autoencoder = build_autoencoder(shape, device="cpu", dtype=torch.float32)
    assert dict(autoencoder.named_buffers()) == {}
    assert dict(autoencoder.named_parameters()).keys() == random_weights(shape, seed=0).keys()


def test_one_part_alone_has_no_weights_of_the_other_and_says_what_it_lacks() -> None:
    for part, lacking, used in (
        ("encoder", "decoder", {"encoder", "quant_conv"}),
        ("decoder", "encoder", {"decoder", "post_quant_conv"}),
    ):
        autoencoder = build_autoencoder(TINY, device="cpu", dtype=torch.float32, parts=(part,))
        assert {name.split(".")[0] for name, _ in autoencoder.named_parameters()} == used
        fill(autoencoder, TINY)
        alone, whole = WanTokenizer(autoencoder, **statistics_of(TINY)), built()
        calls: dict[str, Callable[[WanTokenizer], Tensor]] = {
            "encoder": lambda tokenizer: tokenizer.encode(video_of(5)),
            "decoder": lambda tokenizer: tokenizer.decode(latent_of(2)),
        }
        assert torch.equal(calls[part](alone), calls[part](whole))
        with pytest.raises(ValueError, match=f"without its {lacking}"):
            calls[lacking](alone)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_the_latent_is_that_of_diffusers_normalised(
    frames: int, tokenizer: WanTokenizer, theirs: nn.Module
) -> None:
    with torch.no_grad():
        raw = theirs.encode(video_of(frames)).latent_dist.mode()
    latent = tokenizer.encode(video_of(frames))
    assert latent.shape == (1, 16, 1 + frames // 4, 2, 3)
    mean, std = over_latent(tokenizer.mean_C), over_latent(tokenizer.std_C)
    torch.testing.assert_close(latent, (raw - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_the_video_is_that_of_diffusers(frames: int, tokenizer: WanTokenizer, theirs: nn.Module) -> None:
    latent = latent_of(frames)
    with torch.no_grad():
        wanted = theirs.decode(latent * over_latent(tokenizer.std_C) + over_latent(tokenizer.mean_C)).sample
    video = tokenizer.decode(latent)
    assert video.shape == (1, 3, 4 * frames - 3, 16, 24)
    torch.testing.assert_close(video.clamp(-1, 1), wanted, rtol=1e-5, atol=1e-5)


def test_values_beyond_one_are_left_to_whoever_rounds_them() -> None:
    tokenizer = built()
    video = tokenizer.decode(latent_of(2))
    last = tokenizer.autoencoder.get_submodule("decoder.conv_out")
    last.weight.mul_(8)
    last.bias.mul_(8)
    louder = tokenizer.decode(latent_of(2))
    assert louder.min() < -1 and louder.max() > 1
    torch.testing.assert_close(louder, 8 * video)


@pytest.mark.parametrize("shape", [TINY, *OTHERS])
@pytest.mark.parametrize("latent_frames", [1, 2])
def test_the_beginning_of_a_video_alone_has_the_first_latents_of_the_whole(
    latent_frames: int, shape: WanTokenizerShape
) -> None:
    tokenizer, time = built(shape), shape.temporal_compression
    whole, count = video_of(3 * time + 1), (latent_frames - 1) * time + 1
    latent = tokenizer.encode(whole[:, :, :count])
    assert latent.shape[2] == latent_frames
    torch.testing.assert_close(latent, tokenizer.encode(whole)[:, :, :latent_frames])
    whole[:, :, count:] = 0
    torch.testing.assert_close(latent, tokenizer.encode(whole)[:, :, :latent_frames])


@pytest.mark.parametrize("shape", [TINY, *OTHERS])
def test_the_latent_is_the_same_for_every_window(shape: WanTokenizerShape) -> None:
    tokenizer, time = built(shape), shape.temporal_compression
    video = video_of(3 * time + 1)
    latent = tokenizer.encode(video)
    for window in (time, 2 * time, 3 * time, 4 * time):
        again = tokenizer.encode(video, frames_per_window=window)
        torch.testing.assert_close(again, latent, rtol=1e-4, atol=1e-5)


def test_windows_have_the_frames_that_are_asked_for_after_the_first(tokenizer: WanTokenizer) -> None:
    seen: list[int] = []
    hook = tokenizer.autoencoder.encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[2])
    )
    try:
        tokenizer.encode(video_of(13))
        tokenizer.encode(video_of(13), frames_per_window=8)
    finally:
        hook.remove()
    assert seen == [1, 4, 4, 4, 1, 8, 4]


@pytest.mark.parametrize("window", [0, -4, 6])
def test_a_window_that_cuts_a_latent_frame_is_refused(window: int, tokenizer: WanTokenizer) -> None:
    with pytest.raises(ValueError, match=f"frames_per_window is {window}: a latent frame holds 4"):
        tokenizer.encode(video_of(5), frames_per_window=window)


@pytest.mark.parametrize("shape", [TINY, *OTHERS])
def test_pieces_are_one_frame_and_then_a_latent_frame_each_unless_told_otherwise(
    shape: WanTokenizerShape,
) -> None:
    tokenizer, time = built(shape), shape.temporal_compression
    latent = latent_of(4, channels=shape.latent_channels)
    pieces = list(tokenizer.decode_pieces(latent))
    assert [piece.shape[2] for piece in pieces] == [1, time, time, time]
    assert torch.equal(torch.cat(pieces, dim=2), tokenizer.decode(latent))
    side = shape.spatial_compression
    assert pieces[0].shape == (1, 3, 1, 2 * side, 3 * side)


@pytest.mark.parametrize("shape", [TINY, *OTHERS])
def test_the_video_is_the_same_in_longer_pieces(shape: WanTokenizerShape) -> None:
    tokenizer, time = built(shape), shape.temporal_compression
    latent = latent_of(6, channels=shape.latent_channels)
    video = tokenizer.decode(latent)
    for count in (2, 3, 9):
        torch.testing.assert_close(
            tokenizer.decode(latent, frames_per_piece=count), video, rtol=1e-4, atol=1e-5
        )
    pieces = tokenizer.decode_pieces(latent, frames_per_piece=2)
    assert [piece.shape[2] for piece in pieces] == [1 + time, 2 * time, 2 * time]


def test_a_piece_of_no_frames_is_refused(tokenizer: WanTokenizer) -> None:
    with pytest.raises(ValueError, match="frames_per_piece is 0"):
        tokenizer.decode_pieces(latent_of(2), frames_per_piece=0)


def test_later_pieces_remember_the_ones_before(tokenizer: WanTokenizer) -> None:
    latent = latent_of(3)
    pieces = list(tokenizer.decode_pieces(latent))
    latent[:, :, 0] += 1
    for before, after in pairwise([pieces, list(tokenizer.decode_pieces(latent))]):
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, after, strict=True))


def test_an_abandoned_decode_leaves_nothing_to_the_next_call(tokenizer: WanTokenizer) -> None:
    video, latent = tokenizer.decode(latent_of(3)), tokenizer.encode(video_of(9))
    abandoned = tokenizer.decode_pieces(latent_of(4) + 5)
    next(abandoned)
    next(abandoned)
    assert torch.equal(tokenizer.decode(latent_of(3)), video)
    assert torch.equal(tokenizer.encode(video_of(9)), latent)
    assert next(abandoned).shape[2] == 4


def test_two_decodes_at_once_do_not_mix(tokenizer: WanTokenizer) -> None:
    latents = latent_of(3), latent_of(3) + 1
    wanted = [tokenizer.decode(latent) for latent in latents]
    both = zip(*(tokenizer.decode_pieces(latent) for latent in latents), strict=True)
    for video, pieces in zip(wanted, zip(*both, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces, dim=2), video)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_call_that_fails_in_the_middle_leaves_nothing_to_the_next(
    part: str, tokenizer: WanTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call() -> Tensor:
        return tokenizer.encode(video_of(9)) if part == "encoder" else tokenizer.decode(latent_of(3))

    wanted, calls, upsample = call(), [], streaming._upsample

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        if part == "encoder":
            patched.setattr(tokenizer.autoencoder.encoder.conv_out, "forward", fail)
        else:
            patched.setattr(streaming, "_upsample", lambda *given: fail() or upsample(*given))
        call()
    assert torch.equal(call(), wanted)


def test_a_batch_is_coded_one_by_one(tokenizer: WanTokenizer) -> None:
    videos = torch.cat([video_of(5), -video_of(5)])
    latents = tokenizer.encode(videos)
    for i in range(2):
        torch.testing.assert_close(latents[i : i + 1], tokenizer.encode(videos[i : i + 1]))
        torch.testing.assert_close(
            tokenizer.decode(latents)[i : i + 1], tokenizer.decode(latents[i : i + 1]), atol=1e-5, rtol=1e-4
        )


def test_bfloat16_is_near_float32_and_keeps_the_statistics_exact(tokenizer: WanTokenizer) -> None:
    rounded = built(dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded.mean_C, tokenizer.mean_C) and rounded.std_C.dtype == torch.float32
    latent, video = tokenizer.encode(video_of(9)), tokenizer.decode(latent_of(3))
    near_latent, near_video = rounded.encode(video_of(9)), rounded.decode(latent_of(3))
    assert near_latent.dtype == torch.float32 and near_video.dtype == torch.bfloat16
    assert 0 < (near_latent - latent).norm() < 0.05 * latent.norm()
    assert 0 < (near_video.float() - video).norm() < 0.05 * video.norm()


@pytest.mark.parametrize("shape", [(1, 8, 2, 2, 2), (16, 2, 2, 2), (1, 16, 0, 2, 2)])
def test_a_latent_that_does_not_fit_is_refused_at_the_call(
    shape: tuple[int, ...], tokenizer: WanTokenizer
) -> None:
    with pytest.raises(ValueError, match=r"no \[B, 16"):
        tokenizer.decode_pieces(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((1, 3, 8, 16, 16), r"8 frames: the tokenizer takes 4k\+1"),
        ((1, 3, 0, 16, 16), r"0 frames: the tokenizer takes 4k\+1"),
        ((1, 3, 9, 16, 20), "20x16 pixels: the tokenizer takes multiples of 8"),
        ((1, 4, 9, 16, 16), r"no \[B, 3"),
        ((3, 9, 16, 16), r"no \[B, 3"),
    ],
)
def test_a_video_that_does_not_fit_is_refused(
    shape: tuple[int, ...], rule: str, tokenizer: WanTokenizer
) -> None:
    with pytest.raises(ValueError, match=rule):
        tokenizer.encode(torch.zeros(shape))
