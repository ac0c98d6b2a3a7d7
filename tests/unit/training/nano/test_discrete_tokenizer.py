from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import DiscreteTokenizerShape, find_card
from cosmos_nemo.checkpoint.discrete_tokenizer_names import tensor_shapes
from cosmos_nemo.models.discrete_tokenizer.fsq import bounded, nearest_codes, num_codes
from cosmos_nemo.models.discrete_tokenizer.model import build_autoencoder
from cosmos_nemo.models.video_tokenizer.encoding import encode
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.training.nano import discrete_tokenizer
from cosmos_nemo.training.nano.discrete_tokenizer import (
    StraightThrough,
    TrainedDiscreteTokenizer,
    train_discrete_tokenizer,
    write_discrete_tokenizer,
)
from cosmos_nemo.training.nano.tokenizer_clips import to_video
from cosmos_nemo.training.nano.tokenizer_training import TokenizerStateError, Training, TrainingStopped
from cosmos_nemo.training.nano.world import TRAINED, draw_clips

CPU = torch.device("cpu")
SHAPE = DiscreteTokenizerShape(
    channels=4, channel_multipliers=(1, 1, 1), num_res_blocks=1, latent_channels=4, levels=(4, 3, 5)
)


def train(**changes: object) -> TrainedDiscreteTokenizer:
    options = {"seed": 0, "num_steps": 3, "batch_size": 1, "device": CPU} | changes
    return train_discrete_tokenizer(SHAPE, **options)  # type: ignore[arg-type]


def begun(num_steps: int = 30) -> Training:
    return discrete_tokenizer._training(
        SHAPE, seed=0, learning_rate=0.02, num_steps=num_steps, batch_size=1, device=CPU
    )


@pytest.fixture(scope="module")
def trained() -> TrainedDiscreteTokenizer:
    return train()


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return draw_clips(TRAINED[:1], seed=0, device=CPU)


def interrupted(step: int, loss: float) -> None:
    if step == 1:
        raise KeyboardInterrupt


def test_an_interrupted_training_continues_to_the_same_weights(
    trained: TrainedDiscreteTokenizer, tmp_path: Path
) -> None:
    state, steps = tmp_path / "state.pt", list[int]()
    with pytest.raises(KeyboardInterrupt):
        train(state_path=state, save_every_s=-1.0, on_step=interrupted)
    with pytest.raises(TrainingStopped, match="after step 2"):
        train(state_path=state, wants_to_stop=lambda: True)
    continued = train(state_path=state, on_step=lambda step, loss: steps.append(step))
    assert steps == [3]
    assert all(torch.equal(continued.weights[name], values) for name, values in trained.weights.items())


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    train(state_path=state, num_steps=1)
    with pytest.raises(TokenizerStateError, match="with seed 0, not 1: remove it"):
        train(state_path=state, num_steps=1, seed=1)


def test_the_codes_are_those_of_inference_and_the_gradient_that_of_what_was_rounded() -> None:
    levels = (8, 5, 2)
    z = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codes = StraightThrough(levels)(z)
    torch.testing.assert_close(codes, nearest_codes(z, levels), rtol=0, atol=1e-6)
    weight = torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad((codes * weight).sum(), z)
    middle = torch.tensor([4.0, 2.0, 1.0]).view(3, 1, 1, 1)
    (expected,) = torch.autograd.grad((bounded(z, levels) / middle * weight).sum(), z)
    torch.testing.assert_close(found, expected)
    assert found.abs().min() > 0


def test_gradients_reach_every_weight_on_both_sides_of_the_codes() -> None:
    training = begun()
    training._objective(*training.inputs(0)).backward()
    without = [name for name, values in training.network.named_parameters() if not values.grad.any()]
    assert not without


def test_training_sees_the_network_that_inference_builds(
    trained: TrainedDiscreteTokenizer, clip: Tensor
) -> None:
    """Diffusers' forward pass, which is trained, and the one of this package give the same."""
    autoencoder = build_autoencoder(SHAPE, device=CPU, dtype=torch.float32)
    for name, parameter in autoencoder.named_parameters():
        parameter.data.copy_(trained.weights[name])
    video = to_video(clip)[:, :, :17]
    with torch.no_grad():
        latent = autoencoder.encode(video).latent_dist.mode()
        torch.testing.assert_close(latent, encode(autoencoder, video), rtol=1e-4, atol=1e-4)
        tokenizer = trained.build(device=CPU)
        ids = tokenizer.encode(video)
        theirs = autoencoder.decode(nearest_codes(latent, SHAPE.levels)).sample
    torch.testing.assert_close(theirs, tokenizer.decode(ids), rtol=1e-3, atol=1e-3)


def test_the_stage_makes_of_the_folder_the_ids_and_frames_of_the_trained_tokenizer(
    trained: TrainedDiscreteTokenizer, clip: Tensor, tmp_path: Path
) -> None:
    write_discrete_tokenizer(tmp_path / "new", trained, dtype=torch.float32)
    tokenizer, video = trained.build(device=CPU), to_video(clip)
    ids = tokenizer.encode(video)
    assert ids.shape == (1, 5, 8, 8) and ids.min() >= 0 and ids.max() < num_codes(SHAPE.levels)
    with DiscreteTokenizerStage(shape=SHAPE, folder=tmp_path / "new", device=CPU) as stage:
        assert torch.equal(stage.encode(video), ids)
        levels = to_uint8(tokenizer.decode(ids))
        assert (stage.decode(ids).int() - levels.int()).abs().max() <= 1


def test_float16_halves_the_file(trained: TrainedDiscreteTokenizer, tmp_path: Path) -> None:
    write_discrete_tokenizer(tmp_path / "half", trained)
    write_discrete_tokenizer(tmp_path / "full", trained, dtype=torch.float32)
    half, full = ((tmp_path / name / "tokenizer.safetensors").stat().st_size for name in ("half", "full"))
    assert half < 0.75 * full


def test_the_nano_cards_tokenizer_is_a_file_of_four_megabytes_at_most() -> None:
    tokens = find_card("Cosmos-Nano-Autoregressive").tokens
    assert tokens is not None
    values = sum(torch.Size(sizes).numel() for sizes in tensor_shapes(tokens.tokenizer).values())
    assert 2 * values < 4_000_000
    assert tokens.network.vocab_size == num_codes(tokens.tokenizer.levels)


def test_a_few_steps_lower_the_loss() -> None:
    training = begun()
    first = training.inputs(0)
    training.inputs = lambda step: first
    losses = [float(training.advance()) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
