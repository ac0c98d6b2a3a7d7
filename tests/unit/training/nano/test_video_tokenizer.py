from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.models.video_tokenizer.encoding import encode
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.training.nano import video_tokenizer
from cosmos_nemo.training.nano.tokenizer_clips import to_video
from cosmos_nemo.training.nano.tokenizer_training import TokenizerStateError
from cosmos_nemo.training.nano.video_tokenizer import (
    TrainedTokenizer,
    train_video_tokenizer,
    write_video_tokenizer,
)
from cosmos_nemo.training.nano.world import TRAINED, draw_clips

CPU = torch.device("cpu")
SHAPE = TokenizerShape(channels=4, channel_multipliers=(1, 1, 1), num_res_blocks=1)


def train(**changes: object) -> TrainedTokenizer:
    options = {"seed": 0, "num_steps": 3, "batch_size": 1, "device": CPU, "statistics_clips": 2} | changes
    return train_video_tokenizer(SHAPE, **options)


@pytest.fixture(scope="module")
def trained() -> TrainedTokenizer:
    return train()


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return draw_clips(TRAINED[:1], seed=0, device=CPU)


def interrupted(step: int, loss: float) -> None:
    if step == 2:
        raise KeyboardInterrupt


def test_an_interrupted_training_continues_to_the_same_weights(
    trained: TrainedTokenizer, tmp_path: Path
) -> None:
    state, steps = tmp_path / "state.pt", list[int]()
    with pytest.raises(KeyboardInterrupt):
        train(state_path=state, save_every_s=0.0, on_step=interrupted)
    continued = train(state_path=state, on_step=lambda step, loss: steps.append(step))
    assert steps == [3]
    assert all(torch.equal(continued.weights[name], values) for name, values in trained.weights.items())
    assert torch.equal(continued.mean_CT, trained.mean_CT)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train(state_path=state, num_steps=1)
    with pytest.raises(TokenizerStateError, match="with num_steps 1, not 3: remove it"):
        train(state_path=state)


def test_the_stage_makes_of_the_folder_the_latents_and_frames_of_the_trained_tokenizer(
    trained: TrainedTokenizer, clip: Tensor, tmp_path: Path
) -> None:
    write_video_tokenizer(tmp_path / "new", trained, dtype=torch.float32)
    tokenizer = trained.build(device=CPU)
    latent = tokenizer.encode(to_video(clip))
    with Tokenizer(shape=SHAPE, folder=tmp_path / "new", device=CPU) as stage:
        assert torch.equal(stage.encode(to_video(clip)), latent)
        assert stage.decode(latent).shape == clip.shape[1:]


def test_float16_halves_the_file_and_keeps_the_latents(
    trained: TrainedTokenizer, clip: Tensor, tmp_path: Path
) -> None:
    write_video_tokenizer(tmp_path / "half", trained)
    write_video_tokenizer(tmp_path / "full", trained, dtype=torch.float32)
    half, full = (tmp_path / name / "tokenizer.safetensors" for name in ("half", "full"))
    assert half.stat().st_size < 0.75 * full.stat().st_size
    with Tokenizer(shape=SHAPE, folder=tmp_path / "half", device=CPU) as stage:
        latent = stage.encode(to_video(clip))
    wanted = trained.build(device=CPU).encode(to_video(clip))
    assert (latent - wanted).abs().mean() < 0.02


def test_the_statistics_normalise_each_channel_and_frame(trained: TrainedTokenizer) -> None:
    assert trained.mean_CT.shape == trained.std_CT.shape == (16, 16)
    assert torch.equal(trained.mean_CT[:, 4:], trained.mean_CT[:, 4:5].expand(-1, 12))
    clips = draw_clips(TRAINED[:40:10], seed=9, device=CPU)
    latent = trained.build(device=CPU).encode(to_video(clips))
    assert latent.mean((0, 3, 4)).abs().mean() < 0.8
    assert 0.3 < latent.std((0, 3, 4)).mean() < 3


def test_the_statistics_of_an_image_are_those_of_a_first_frame(
    trained: TrainedTokenizer, clip: Tensor
) -> None:
    autoencoder = trained.build(device=CPU).autoencoder
    video = to_video(clip)
    torch.testing.assert_close(encode(autoencoder, video[:, :, :1]), encode(autoencoder, video)[:, :, :1])
    assert torch.equal(trained.image_mean_C, trained.mean_CT[:, 0])


def test_a_few_steps_lower_the_loss() -> None:
    training = video_tokenizer._training(
        SHAPE, seed=0, learning_rate=0.02, num_steps=30, batch_size=1, device=CPU
    )
    first = training.inputs(0)
    training.inputs = lambda step: first
    losses = [float(training.advance()) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
