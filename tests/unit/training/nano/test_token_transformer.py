import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cosmos_nemo.catalog import TokenShape, find_card
from cosmos_nemo.checkpoint.token_formats import token_parameter_shapes
from cosmos_nemo.models.common.backend import torch_backend
from cosmos_nemo.models.token_transformer.model import TokenTransformer
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.sampling.tokens import TokenSampling
from cosmos_nemo.stages.token_generation import TokenGeneration
from cosmos_nemo.training.nano import token_transformer
from cosmos_nemo.training.nano.token_transformer import (
    TrainedTokenTransformer,
    encoded_ids,
    measure_prediction,
    train_token_transformer,
    training_facts,
    write_token_transformer,
)
from cosmos_nemo.training.nano.tokenizer_clips import to_video
from cosmos_nemo.training.nano.tokenizer_training import TokenizerStateError, Training, TrainingStopped
from cosmos_nemo.training.nano.world import TRAINED, draw_clips
from cosmos_nemo.training.settings import TrainingSettings

CPU = torch.device("cpu")
SHAPE = TokenShape(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=48,
    vocab_size=30,
    latent_THW=(4, 2, 3),
    rope_theta=100.0,
    rope_original_THW=(4, 2, 3),
)
SETTINGS = TrainingSettings(
    num_steps=4, global_batch_size=3, learning_rate=5e-3, weight_decay=0.1, adam_betas=(0.9, 0.98)
)


LONGER = replace(SETTINGS, num_steps=150, global_batch_size=32, learning_rate=1e-2)


def counting(count: int) -> Tensor:
    """Clips whose every token is the one before and one more; after 29 comes 0."""
    begin = torch.randint(30, (count, 1), generator=torch.Generator().manual_seed(0))
    return ((begin + torch.arange(24)) % 30).int()


def train(ids_NS: Tensor | None = None, **changes: object) -> TrainedTokenTransformer:
    options = {"settings": SETTINGS, "seed": 0, "pg_collection": start_alone(CPU).collection} | changes
    return train_token_transformer(SHAPE, counting(8) if ids_NS is None else ids_NS, **options)  # type: ignore[arg-type]


def begun(ids_NS: Tensor, settings: TrainingSettings = SETTINGS) -> Training:
    return token_transformer._training(
        SHAPE, ids_NS, settings=settings, seed=0, pg_collection=start_alone(CPU).collection
    )


@pytest.fixture(scope="module")
def trained() -> TrainedTokenTransformer:
    return train()


@pytest.fixture(scope="module")
def counter() -> TrainedTokenTransformer:
    """One that has learnt to count."""
    return train(counting(400), settings=LONGER)


def interrupted(step: int, loss: float) -> None:
    if step == 1:
        raise KeyboardInterrupt


def test_an_interrupted_training_continues_to_the_same_weights(
    trained: TrainedTokenTransformer, tmp_path: Path
) -> None:
    state, steps = tmp_path / "state.pt", list[int]()
    with pytest.raises(KeyboardInterrupt):
        train(state_path=state, save_every_s=-1.0, on_step=interrupted)
    with pytest.raises(TrainingStopped) as stopped:
        train(state_path=state, wants_to_stop=lambda: True)
    assert stopped.value.step == 2
    continued = train(state_path=state, on_step=lambda step, loss: steps.append(step))
    assert steps == [3, 4]
    assert all(torch.equal(continued.weights[name], values) for name, values in trained.weights.items())


def test_a_state_of_another_training_is_refused_and_the_precision_is_as_before(tmp_path: Path) -> None:
    state, before = tmp_path / "state.pt", torch.get_float32_matmul_precision()
    train(state_path=state)
    with pytest.raises(TokenizerStateError, match="with clips 8, not 4: remove it"):
        train(counting(4), state_path=state)
    assert torch.get_float32_matmul_precision() == before


def test_a_network_not_trained_yet_knows_nothing_and_a_trained_one_counts(
    counter: TrainedTokenTransformer,
) -> None:
    first = float(begun(counting(400)).advance())
    assert first == pytest.approx(math.log(30), rel=0.05)
    found = measure_prediction(counter, counting(400), pg_collection=start_alone(CPU).collection)
    assert found.loss < 0.1 * first and found.accuracy > 0.95


def test_the_loss_is_of_every_token_after_the_first_frame_and_of_no_other() -> None:
    training, ids = begun(counting(8)), counting(2).long()
    network = training.network
    assert isinstance(network, TokenTransformer)
    logits = network(ids)[:, 5:-1]
    expected = F.cross_entropy(logits.reshape(-1, 30), ids[:, 6:].reshape(-1))
    torch.testing.assert_close(training._objective(ids), expected)


def test_gradients_reach_every_weight() -> None:
    training = begun(counting(8))
    training._objective(*training.inputs(0)).backward()
    without = [name for name, values in training.network.named_parameters() if not values.grad.any()]
    assert not without


def test_clips_depend_on_the_step_alone_and_come_in_turn_at_random() -> None:
    training = begun(torch.arange(24 * 50, dtype=torch.int32).view(50, 24) % 30)
    (first,), (again,), (next_,) = training.inputs(0), training.inputs(0), training.inputs(1)
    assert first.dtype == torch.int64 and first.shape == (3, 24)
    assert torch.equal(first, again) and not torch.equal(first, next_)


def test_matrices_decay_but_not_norms_and_embeddings() -> None:
    (optimizer,) = begun(counting(8)).optimizers
    decays = {
        tuple(each.shape): group["weight_decay"]
        for group in optimizer.param_groups
        for each in group["params"]
    }
    assert decays[(32,)] == decays[(8,)] == 0 and decays[(96, 32)] == decays[(32, 48)] == 0.1
    network = begun(counting(8)).network
    (embedding,) = [each for each in network.parameters() if tuple(each.shape) == (30, 32)][:1]
    assert embedding is network.get_parameter("embedding.word_embeddings.weight")


def test_the_stage_reads_the_folder_and_goes_on_as_the_training_counted(
    counter: TrainedTokenTransformer, tmp_path: Path
) -> None:
    groups = start_alone(CPU)
    (tmp_path / "new").mkdir()
    found = measure_prediction(counter, counting(8), pg_collection=groups.collection)
    write_token_transformer(
        tmp_path / "new", counter, model="Cosmos-Nano-Autoregressive", facts=training_facts(LONGER, found)
    )
    about = json.loads((tmp_path / "new/context/training.json").read_text())
    assert (
        about["settings"]["num_steps"] == LONGER.num_steps and about["held_out"]["accuracy"] == found.accuracy
    )
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"weights", "context"}
    assert "Cosmos-Nano-Autoregressive" in (tmp_path / "new/context/io.json").read_text()
    clips = counting(40)[-6:].view(6, 4, 2, 3)
    with TokenGeneration(
        shape=SHAPE,
        checkpoint=tmp_path / "new",
        groups=groups,
        backend=torch_backend(),
        device=CPU,
        dtype=torch.float32,
    ) as generate:
        drawn = generate(clips[:, :2], seeds=range(6), sampling=TokenSampling(temperature=0.0))
    assert torch.equal(drawn[:, :2], clips[:, :2].long())
    assert (drawn == clips).float().mean() > 0.9


def test_tokens_lie_as_a_transformer_reads_them_and_clips_follow_the_seed() -> None:
    def first_pixels(video_BCTHW: Tensor) -> Tensor:
        """In place of a tokenizer: the level of one pixel of each 8 x 16 x 16."""
        return ((video_BCTHW[:, 0, ::8, ::16, ::16] + 1) * 127.5).round().long()

    scenes = TRAINED[:3]
    ids = encoded_ids(scenes, encode=first_pixels, seed=2, device=CPU)
    assert ids.shape == (3, 320) and ids.dtype == torch.int32
    video = to_video(draw_clips(scenes, seed=2 * 1_000_003, device=CPU))
    assert torch.equal(ids.view(3, 5, 8, 8).long(), first_pixels(video))
    assert not torch.equal(ids, encoded_ids(scenes, encode=first_pixels, seed=3, device=CPU))


def test_the_nano_cards_network_has_three_to_five_million_parameters_and_its_video_five_frames() -> None:
    tokens = find_card("Cosmos-Nano-Autoregressive").tokens
    assert tokens is not None
    count = sum(math.prod(size) for size in token_parameter_shapes(tokens.network).values())
    assert 3e6 < count < 5e6
    assert tokens.network.num_video_tokens == 320
