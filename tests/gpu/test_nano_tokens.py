"""Trainings of the nano world's tokens on a GPU: recorded graphs, and the CPU's losses but for rounding."""

import pytest
import torch

from cosmos_nemo.catalog import find_card
from cosmos_nemo.models.discrete_tokenizer.fsq import nearest_codes
from cosmos_nemo.parallel.groups import start_alone
from cosmos_nemo.training.nano import discrete_tokenizer, token_transformer
from cosmos_nemo.training.nano.discrete_tokenizer import StraightThrough
from cosmos_nemo.training.nano.tokenizer_training import Training
from cosmos_nemo.training.settings import TrainingSettings

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CARD = find_card("Cosmos-Nano-Autoregressive")
assert CARD.tokens is not None
TOKENS = CARD.tokens


def test_codes_can_be_recorded_in_a_cuda_graph() -> None:
    levels = TOKENS.tokenizer.levels
    z, codes = torch.randn(2, len(levels), 3, 4, 4, device=GPU), StraightThrough(levels).to(GPU)
    codes(z)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = codes(z)
    z.copy_(2 * torch.randn_like(z))
    graph.replay()
    torch.testing.assert_close(found, nearest_codes(z, levels), rtol=0, atol=1e-6)


def tokenizer_training(device: torch.device) -> Training:
    return discrete_tokenizer._training(
        TOKENS.tokenizer, seed=0, learning_rate=0.0075, num_steps=20, batch_size=1, device=device
    )


def test_the_tokenizer_learns_the_same_with_graphs_as_on_the_cpu() -> None:
    here, there = tokenizer_training(CPU), tokenizer_training(GPU)
    clip = here.inputs(0)
    here.inputs = lambda step: clip
    there.inputs = lambda step: tuple(values.to(GPU) for values in clip)
    losses = [(float(here.advance()), float(there.advance())) for _ in range(2)]
    assert losses[0][1] == pytest.approx(losses[0][0], rel=0.05)
    assert losses[1][1] == pytest.approx(losses[1][0], rel=0.2)


def test_the_transformer_learns_the_same_as_on_the_cpu() -> None:
    shape, groups = TOKENS.network, start_alone(GPU)
    ids_NS = torch.randint(shape.vocab_size, (4, 320), dtype=torch.int32)
    settings = TrainingSettings(num_steps=20, global_batch_size=4, learning_rate=1e-3, weight_decay=0.1)
    here, there = (
        token_transformer._training(
            shape, ids_NS.to(device), settings=settings, seed=0, pg_collection=groups.collection
        )
        for device in (CPU, GPU)
    )
    for _ in range(3):
        assert float(there.advance()) == pytest.approx(float(here.advance()), rel=0.01)
