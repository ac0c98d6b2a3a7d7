from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder, to_uint8
from cosmos_nemo.models.video_tokenizer.streaming import decode_pieces

Build = Callable[..., nn.Module]


@pytest.fixture
def statistics() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "mean_CT": torch.randn(16, 6, generator=draw),
        "std_CT": 0.5 + torch.rand(16, 6, generator=draw),
    }


def video_of(frames: int, *, height: int = 16, width: int = 24) -> Tensor:
    return 2 * torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(2)) - 1


def test_a_network_built_over_meta_has_the_constants_of_one_built_on_the_cpu(
    tiny: TokenizerShape, theirs: Build
) -> None:
    ours_by_name = dict(build_autoencoder(tiny, device="cpu", dtype=torch.float32).named_buffers())
    theirs_by_name = dict(theirs(tiny).named_buffers())
    assert ours_by_name.keys() == theirs_by_name.keys()
    assert len(ours_by_name) == 4
    for name, values in theirs_by_name.items():
        assert torch.equal(ours_by_name[name], values), name


def test_a_network_built_on_meta_takes_no_memory(tiny: TokenizerShape) -> None:
    autoencoder = build_autoencoder(tiny, device="meta", dtype=torch.bfloat16)
    assert all(parameter.is_meta for parameter in autoencoder.parameters())
    assert {parameter.dtype for parameter in autoencoder.parameters()} == {torch.bfloat16}


def test_a_decoder_alone_has_no_weights_of_the_encoder(
    tiny: TokenizerShape, statistics: dict[str, Tensor]
) -> None:
    autoencoder = build_autoencoder(tiny, device="cpu", dtype=torch.float32, parts=("decoder",))
    assert {name.split(".")[0] for name, _ in autoencoder.named_parameters()} == {
        "decoder",
        "post_quant_conv",
    }
    tokenizer = VideoTokenizer(autoencoder, **statistics)
    assert tokenizer.decode(torch.zeros(1, 16, 2, 2, 2)).shape == (1, 3, 9, 16, 16)
    with pytest.raises(ValueError, match="without its encoder"):
        tokenizer.encode(video_of(9))


def test_an_encoder_alone_says_that_it_cannot_decode(
    tiny: TokenizerShape, statistics: dict[str, Tensor]
) -> None:
    autoencoder = build_autoencoder(tiny, device="cpu", dtype=torch.float32, parts=("encoder",))
    with pytest.raises(ValueError, match="without its decoder"):
        VideoTokenizer(autoencoder, **statistics).decode(torch.zeros(1, 16, 2, 2, 2))


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_the_latent_is_that_of_diffusers_normalised_by_frame(
    frames: int, tiny: TokenizerShape, ours: Build, theirs: Build, statistics: dict[str, Tensor]
) -> None:
    video = video_of(frames)
    with torch.no_grad():
        raw = theirs(tiny).encode(video).latent_dist.mode()
    latent = VideoTokenizer(ours(tiny), **statistics).encode(video)
    count = 1 + frames // 8
    mean, std = (statistics[name][:, :count, None, None] for name in ("mean_CT", "std_CT"))
    assert latent.shape == (1, 16, count, 2, 3)
    torch.testing.assert_close(latent, (raw - mean) / std, rtol=1e-5, atol=1e-5)


def test_encoding_works_in_bfloat16_on_a_cpu(
    tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    video = video_of(17)
    exact = VideoTokenizer(ours(tiny), **statistics).encode(video)
    rounded = VideoTokenizer(ours(tiny, torch.bfloat16), **statistics).encode(video)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.03 * exact.norm()


def test_the_latent_is_given_its_statistics_before_it_is_decoded(
    tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    autoencoder = ours(tiny)
    latent = torch.randn(1, 16, 3, 2, 2)
    raw = latent * statistics["std_CT"][:, :3, None, None] + statistics["mean_CT"][:, :3, None, None]
    wanted = torch.cat(list(decode_pieces(autoencoder, raw, frames_per_piece=3)), dim=2)
    video = VideoTokenizer(autoencoder, **statistics).decode(latent, frames_per_piece=2)
    torch.testing.assert_close(video, wanted, rtol=1e-5, atol=1e-5)


def test_one_frame_has_statistics_of_its_own_where_there_are_any(
    tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    autoencoder, video = ours(tiny), video_of(1)
    image = {"image_mean_C": torch.full((16,), 3.0), "image_std_C": torch.full((16,), 2.0)}
    plain = VideoTokenizer(autoencoder, mean_CT=torch.zeros(16, 6), std_CT=torch.ones(16, 6))
    with_image = VideoTokenizer(autoencoder, **statistics, **image)
    torch.testing.assert_close(with_image.encode(video), (plain.encode(video) - 3) / 2)
    torch.testing.assert_close(with_image.decode(with_image.encode(video)), plain.decode(plain.encode(video)))
    longer = video_of(9)
    without = VideoTokenizer(autoencoder, **statistics)
    torch.testing.assert_close(with_image.encode(longer), without.encode(longer))
    first_mean, first_std = (statistics[name][:, :1, None, None] for name in ("mean_CT", "std_CT"))
    torch.testing.assert_close(without.encode(video), (plain.encode(video) - first_mean) / first_std)


def test_the_statistics_stay_float32_beside_a_bfloat16_network(tiny: TokenizerShape, ours: Build) -> None:
    fine = torch.full((16, 6), 1 + 2**-12)
    tokenizer = VideoTokenizer(ours(tiny, torch.bfloat16), mean_CT=0 * fine, std_CT=fine)
    assert torch.equal(tokenizer.std_CT, fine)
    assert tokenizer.dtype == torch.bfloat16
    assert tokenizer.decode(torch.zeros(1, 16, 2, 2, 2)).dtype == torch.bfloat16


def test_a_round_trip_keeps_the_size(
    tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    tokenizer = VideoTokenizer(ours(tiny), **statistics)
    video = video_of(41)
    assert tokenizer.decode(tokenizer.encode(video)).shape == video.shape


@pytest.mark.parametrize(
    ("shape", "rule"),
    [((1, 16, 7, 2, 2), "end at 6"), ((1, 8, 2, 2, 2), r"no \[B, 16"), ((16, 2, 2, 2), r"no \[B, 16")],
)
def test_a_latent_that_does_not_fit_is_refused_at_the_call(
    shape: tuple[int, ...], rule: str, tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    tokenizer = VideoTokenizer(ours(tiny), **statistics)
    with pytest.raises(ValueError, match=rule):
        tokenizer.decode_pieces(torch.zeros(shape))


def test_a_piece_of_no_frames_is_refused(
    tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="frames_per_piece is 0"):
        VideoTokenizer(ours(tiny), **statistics).decode(torch.zeros(1, 16, 2, 2, 2), frames_per_piece=0)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        ((1, 3, 8, 16, 16), "8 frames: the tokenizer takes 8k"),
        ((1, 3, 49, 16, 16), "at most 41"),
        ((1, 3, 9, 16, 20), "20x16 pixels"),
        ((1, 4, 9, 16, 16), r"no \[B, 3"),
    ],
)
def test_a_video_that_does_not_fit_is_refused(
    shape: tuple[int, ...], rule: str, tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=rule):
        VideoTokenizer(ours(tiny), **statistics).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 16, 0, 2, 2), (1, 4, 2, 2, 2), (16, 2, 2, 2)])
def test_a_latent_that_is_none_of_this_tokenizers_is_refused(
    shape: tuple[int, ...], tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"is no \[B, 16, T, H, W\]"):
        VideoTokenizer(ours(tiny), **statistics).decode(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_are_truncated_and_what_is_outside_is_clamped(dtype: torch.dtype) -> None:
    video = (
        torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0], dtype=dtype)
        .view(1, 1, 1, 1, 6)
        .expand(1, 3, 2, 1, 6)
    )
    kept = video.clone()
    frames = to_uint8(video)
    assert frames.shape == (2, 1, 6, 3) and frames.dtype == torch.uint8
    rounded_up = 255 if dtype == torch.bfloat16 else 254
    assert frames[1, 0, :, 2].tolist() == [0, 0, 127, rounded_up, 255, 255]
    assert torch.equal(video, kept)


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_frames_that_follow_change_nothing_in_the_latent_of_a_beginning(
    frames: int, tiny: TokenizerShape, ours: Build, statistics: dict[str, Tensor]
) -> None:
    image = {"image_mean_C": torch.full((16,), 3.0), "image_std_C": torch.full((16,), 2.0)}
    tokenizer, whole = VideoTokenizer(ours(tiny), **statistics, **image), video_of(33)
    latent = tokenizer.encode(whole[:, :, :frames], as_image=False)
    torch.testing.assert_close(latent, tokenizer.encode(whole)[:, :, : 1 + frames // 8])
    whole[:, :, frames:] = 0
    torch.testing.assert_close(latent, tokenizer.encode(whole)[:, :, : 1 + frames // 8])
