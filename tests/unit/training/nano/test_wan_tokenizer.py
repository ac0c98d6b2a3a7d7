from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import WanTokenizerShape, find_card
from cosmos_nemo.checkpoint.wan_tokenizer_names import tensor_shapes
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer, build_autoencoder
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from cosmos_nemo.tools.standin_wan_tokenizer import random_weights
from cosmos_nemo.training.nano import wan_tokenizer
from cosmos_nemo.training.nano.tokenizer_clips import measure_psnr, object_mask, to_video
from cosmos_nemo.training.nano.tokenizer_training import TokenizerStateError
from cosmos_nemo.training.nano.wan_tokenizer import (
    TrainedWanTokenizer,
    decode_whole,
    encode_whole,
    train_wan_tokenizer,
    write_wan_tokenizer,
)
from cosmos_nemo.training.nano.world import TRAINED, draw_clips

CPU = torch.device("cpu")
SHAPE = WanTokenizerShape(channels=2, channel_multipliers=(1, 2, 3, 2), num_res_blocks=1)


WHOLE, CROP = 48, 16
"""Rows and columns of what these trainings see."""


@pytest.fixture(scope="module", autouse=True)
def _small_frames() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wan_tokenizer, "_WHOLE_SIZE", WHOLE)
        patch.setattr(wan_tokenizer, "_CROP_SIZE", CROP)
        patch.setattr(wan_tokenizer, "_BANK_CLIPS", 6)
        yield


def train(**changes: object) -> TrainedWanTokenizer:
    options = {"seed": 0, "num_steps": 3, "batch_size": 1, "device": CPU, "statistics_clips": 2} | changes
    return train_wan_tokenizer(SHAPE, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained() -> TrainedWanTokenizer:
    return train()


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return draw_clips(TRAINED[:1], seed=0, device=CPU)


@pytest.fixture(scope="module")
def bank() -> wan_tokenizer._Bank:
    return wan_tokenizer._Bank(6, seed=3, device=CPU)


def interrupted(step: int, loss: float) -> None:
    if step == 1:
        raise KeyboardInterrupt


def test_an_interrupted_training_continues_to_the_same_weights(
    trained: TrainedWanTokenizer, tmp_path: Path
) -> None:
    state, steps = tmp_path / "state.pt", list[int]()
    with pytest.raises(KeyboardInterrupt):
        train(state_path=state, save_every_s=-1.0, on_step=interrupted)
    continued = train(state_path=state, on_step=lambda step, loss: steps.append(step))
    assert steps == [2, 3]
    assert all(torch.equal(continued.weights[name], values) for name, values in trained.weights.items())
    assert torch.equal(continued.mean_C, trained.mean_C) and torch.equal(continued.std_C, trained.std_C)


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train(state_path=state, num_steps=1)
    with pytest.raises(TokenizerStateError, match="with seed 0, not 1: remove it"):
        train(state_path=state, num_steps=1, seed=1)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TokenizerStateError, match="cannot be read"):
        train(state_path=state, num_steps=1)


def test_the_stage_makes_of_the_folder_the_latents_and_frames_of_the_trained_tokenizer(
    trained: TrainedWanTokenizer, clip: Tensor, tmp_path: Path
) -> None:
    write_wan_tokenizer(tmp_path / "new", trained, dtype=torch.float32)
    tokenizer = trained.build(device=CPU)
    video = to_video(clip)[:, :, :9]
    latent = tokenizer.encode(video)
    with WanTokenizerStage(shape=SHAPE, folder=tmp_path / "new", device=CPU) as stage:
        assert torch.equal(stage.encode(video), latent)
        levels = to_uint8(tokenizer.decode(latent))
        assert (stage.decode(latent).int() - levels.int()).abs().max() <= 1


def test_diffusers_opens_the_folder(trained: TrainedWanTokenizer, clip: Tensor, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    write_wan_tokenizer(tmp_path / "new", trained, dtype=torch.float32)
    theirs = AutoencoderKLWan.from_pretrained(tmp_path / "new", local_files_only=True)
    video = to_video(clip)[:, :, :5]
    with torch.no_grad():
        posterior = theirs.encode(video).latent_dist
    mean_C, std_C = Tensor(theirs.config.latents_mean), Tensor(theirs.config.latents_std)
    normalised = (posterior.mode() - mean_C.view(-1, 1, 1, 1)) / std_C.view(-1, 1, 1, 1)
    torch.testing.assert_close(normalised, trained.build(device=CPU).encode(video), atol=1e-4, rtol=1e-4)
    spread = posterior.std / std_C.view(-1, 1, 1, 1)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.075), atol=1e-4, rtol=1e-3)


def test_float16_halves_the_file_and_keeps_the_latents(
    trained: TrainedWanTokenizer, clip: Tensor, tmp_path: Path
) -> None:
    write_wan_tokenizer(tmp_path / "half", trained)
    write_wan_tokenizer(tmp_path / "full", trained, dtype=torch.float32)
    half, full = (tmp_path / name / "diffusion_pytorch_model.safetensors" for name in ("half", "full"))
    assert half.stat().st_size < 0.75 * full.stat().st_size
    video = to_video(clip)[:, :, :5]
    with WanTokenizerStage(shape=SHAPE, folder=tmp_path / "half", device=CPU) as stage:
        latent = stage.encode(video)
    assert (latent - trained.build(device=CPU).encode(video)).abs().mean() < 0.02


def test_the_nano_card_s_tokenizer_is_a_file_of_four_megabytes_at_most() -> None:
    shape = find_card("Cosmos-Nano-Predict2-Video2World").tokenizer
    assert isinstance(shape, WanTokenizerShape)
    values = sum(torch.Size(sizes).numel() for sizes in tensor_shapes(shape).values())
    assert 2 * values < 3_900_000


def test_a_whole_clip_at_once_is_the_clip_in_pieces() -> None:
    shape = WanTokenizerShape(channels=8, channel_multipliers=(1, 2, 3, 2))
    autoencoder = build_autoencoder(shape, device="cpu", dtype=torch.float32)
    autoencoder.load_state_dict(random_weights(shape, seed=0))
    tokenizer = WanTokenizer(autoencoder, mean_C=torch.zeros(16), std_C=torch.ones(16))
    video = 2 * torch.rand(2, 3, 13, 16, 24, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        for frames in (5, 13):
            latent = encode_whole(autoencoder, video[:, :, :frames])
            torch.testing.assert_close(latent, tokenizer.encode(video[:, :, :frames]))
            torch.testing.assert_close(decode_whole(autoencoder, latent), tokenizer.decode(latent))


def test_the_whole_clip_leads_gradients_to_every_weight() -> None:
    training = wan_tokenizer._training(
        SHAPE, seed=0, learning_rate=0.01, num_steps=2, batch_size=1, device=CPU, uses_graphs=False
    )
    training._objective(*training.inputs(0)).backward()
    without = [name for name, values in training.network.named_parameters() if not values.grad.any()]
    assert not without


def test_the_variance_of_the_posterior_is_left_alone_by_the_training(trained: TrainedWanTokenizer) -> None:
    weight, bias = trained.weights["quant_conv.weight"], trained.weights["quant_conv.bias"]
    assert not weight[16:].any() and weight[:16].any()
    assert torch.equal(bias[16:], 2 * (0.075 * trained.std_C).log())


def test_the_statistics_normalise_each_channel(trained: TrainedWanTokenizer) -> None:
    assert trained.mean_C.shape == trained.std_C.shape == (16,)
    assert trained.mean_C.isfinite().all() and (trained.std_C > 0).all()
    video = to_video(draw_clips(TRAINED[:40:10], seed=9, device=CPU))[:, :, :17]
    latent = trained.build(device=CPU).encode(video, frames_per_window=16)
    assert latent.mean((0, 2, 3, 4)).abs().mean() < 0.8
    assert 0.3 < latent.std((0, 2, 3, 4)).mean() < 3


def test_crops_hold_objects_and_the_weights_follow_them(bank: wan_tokenizer._Bank) -> None:
    video, weight = bank.crops(24, size=32, dice=torch.Generator().manual_seed(0))
    assert video.shape == (24, 3, 33, 32, 32) and weight.shape == (24, 1, 33, 32, 32)
    assert video.abs().max() <= 1
    assert set(weight.unique().tolist()) == {1.0, 9.0}
    seen = (weight > 1).float().mean((1, 2, 3, 4))
    whole = (bank.crops(24, size=128, dice=torch.Generator().manual_seed(0))[1] > 1).float().mean()
    assert seen.mean() > 1.5 * whole


def test_a_crop_is_a_part_of_its_clip_and_its_weights_lie_on_the_object(bank: wan_tokenizer._Bank) -> None:
    video, _ = bank.crops(1, size=32, dice=torch.Generator().manual_seed(5))
    whole, weight = bank.crops(1, size=128, dice=torch.Generator().manual_seed(5))
    windows = whole[0, :, 7].unfold(1, 32, 1).unfold(2, 32, 1)
    assert (windows - video[0, :, 7, None, None]).abs().amax((0, 3, 4)).min() == 0
    assert (weight != 1 + 8 * object_mask(whole)).float().mean() < 0.01


def test_crops_come_first_and_whole_frames_last() -> None:
    training = wan_tokenizer._training(
        SHAPE, seed=0, learning_rate=0.01, num_steps=10, batch_size=2, device=CPU, uses_graphs=False
    )
    sizes = [tuple(training.inputs(step)[0].shape) for step in range(10)]
    assert sizes == [(18, 3, 33, CROP, CROP)] * 6 + [(2, 3, 33, WHOLE, WHOLE)] * 4
    first, again = training.inputs(4), training.inputs(4)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], training.inputs(5)[0])


def test_a_few_steps_lower_the_loss() -> None:
    training = wan_tokenizer._training(
        SHAPE, seed=0, learning_rate=0.02, num_steps=40, batch_size=1, device=CPU, uses_graphs=False
    )
    first = tuple(values[:3] for values in training.inputs(0))
    training.inputs = lambda step: first
    losses = [float(training.advance()) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_ratio_is_that_of_clips_encoded_and_decoded(trained: TrainedWanTokenizer, clip: Tensor) -> None:
    tokenizer, clip = trained.build(device=CPU), clip[:, :9]
    video = to_video(clip)
    error = ((tokenizer.decode(tokenizer.encode(video)).clamp(-1, 1) - video) / 2).square()
    assert measure_psnr(tokenizer, clip).frame == pytest.approx(-10 * float(error.mean().log10()), abs=1e-3)
