from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import find_card
from cosmos_nemo.checkpoint.load import split_axis
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.training.memory import MemoryPrediction, predict_memory
from cosmos_nemo.training.settings import TrainingSettings
from tests.parallel.train_worker import alone, tiny

SHAPE = find_card("Cosmos-1.0-Diffusion-7B-Text2World").network
COUNT = sum(prod(size) for size in parameter_shapes(SHAPE).values())
TOKENS, WIDTH, LAYERS = 16 * 44 * 80, 4096, 28


def predict(
    *, replicas: int = 1, distributed: bool = False, bfloat16: bool = True, **settings: object
) -> MemoryPrediction:
    return predict_memory(
        SHAPE,
        replace(TrainingSettings(), **settings),
        latent_THW=(16, 88, 160),
        num_replicas=replicas,
        distributed=distributed,
        weights_in_bfloat16=bfloat16,
    )


def test_the_7b_model_alone_is_counted_to_the_byte() -> None:
    # The released one has a third of the fused adaLN matrices, of which training fills the rest.
    assert 7.2e9 < COUNT - LAYERS * 9 * WIDTH * 3 * 256 * 2 // 3 < 7.3e9
    found = predict()
    assert found.num_parameters == COUNT
    assert found.weights == 2 * COUNT
    assert found.gradients == 4 * COUNT
    assert found.optimizer == 12 * COUNT
    assert found.average == 4 * COUNT
    assert found.host == 0
    assert found.total == 22 * COUNT + found.activations


def test_numbers_of_half_the_size_take_half() -> None:
    assert predict(gradient_dtype="bfloat16").gradients == 2 * COUNT
    assert predict(bfloat16=False).weights == 4 * COUNT


def test_the_average_is_where_it_was_asked_to_be() -> None:
    host, off = predict(average="host"), predict(average="off")
    assert (host.average, host.host) == (0, 4 * COUNT)
    assert (off.average, off.host) == (0, 0)


def test_replicas_share_the_optimizer_and_the_average_and_nothing_else() -> None:
    alone, shared = predict(), predict(replicas=8, distributed=True)
    assert shared.optimizer == pytest.approx(alone.optimizer / 8, rel=1e-6)
    assert shared.average == pytest.approx(alone.average / 8, rel=1e-6)
    assert (shared.weights, shared.gradients) == (alone.weights, alone.gradients)
    assert predict(replicas=8) == alone


@pytest.mark.parametrize(
    ("measured_gib", "options"),
    [
        (130.5, {"gradient_dtype": "bfloat16", "average": "off"}),
        (129.9, {"replicas": 2, "distributed": True}),
    ],
)
def test_the_peaks_measured_on_h200s_are_predicted(measured_gib: float, options: dict[str, Any]) -> None:
    assert predict(**options).total / 2**30 == pytest.approx(measured_gib, rel=0.02)


def test_gradients_that_come_while_activations_go_share_their_memory() -> None:
    kept = LAYERS * TOKENS * WIDTH * 2
    sharded, alone = predict(distributed=True), predict()
    assert alone.gradients > kept
    assert sharded.activations - alone.activations == kept
    small = predict_memory(
        replace(SHAPE, ffn_hidden_size=64),
        TrainingSettings(recompute="off"),
        latent_THW=(16, 88, 160),
        num_replicas=1,
        distributed=False,
        weights_in_bfloat16=True,
    )
    inside = alone.activations
    assert small.activations == LAYERS * inside - small.gradients


def test_tensor_parallel_ranks_share_the_linears_of_the_layers_alone() -> None:
    whole = sum(prod(size) for name, size in parameter_shapes(SHAPE).items() if split_axis(name) is None)
    four = predict(tensor_parallel=4)
    assert four.num_parameters == whole + (COUNT - whole) // 4
    assert four.weights == 2 * four.num_parameters and four.optimizer == 12 * four.num_parameters
    assert 0.1 < whole / COUNT < 0.15


def test_full_recomputation_keeps_a_row_per_layer_and_one_layers_inside() -> None:
    row = TOKENS * WIDTH * 2
    full, off = (predict(distributed=True, recompute=way).activations for way in ("full", "off"))
    assert full > LAYERS * row
    inside = full - LAYERS * row
    assert 10 * row < inside < 60 * row
    assert off == LAYERS * inside


def test_context_parallel_ranks_and_the_micro_batch_scale_the_activations_alone() -> None:
    one, shared, two = (
        predict(distributed=True, **change)
        for change in ({}, {"context_parallel": 4}, {"micro_batch_size": 2})
    )
    assert shared.activations == one.activations / 4
    assert two.activations == 2 * one.activations
    assert shared.weights == two.weights == one.weights


def test_of_predict2_nothing_but_its_own_parameters_is_counted() -> None:
    """It has 1,956,413,440 of them as released, and three times the adaLN matrices fused."""
    shape = find_card("Cosmos-Predict2-2B-Video2World").network
    found = predict_memory(
        shape,
        TrainingSettings(),
        latent_THW=(24, 88, 160),
        num_replicas=1,
        distributed=False,
        weights_in_bfloat16=True,
    )
    fused = shape.num_layers * 9 * shape.hidden_size * 3 * shape.adaln_lora_dim
    assert found.num_parameters - fused * 2 // 3 == 1_956_413_440
    assert found.optimizer == 12 * found.num_parameters


def test_a_step_of_predict2_keeps_no_more_for_its_backward_pass_than_one_of_predict1() -> None:
    """The prediction's widths of a layer were measured with the 7B: runs of frames must not add to them."""
    kept = {}
    for name in ("Cosmos-Nano-Video2World", "Cosmos-Nano-Predict2-Video2World"):
        run = alone(card=tiny(name), recompute="off", global_batch_size=2, micro_batch_size=2)
        saved: list[Tensor] = []  # held, else an address may serve another tensor

        def note(tensor: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run._loss(range(4, 6))
        weights = {parameter.data_ptr() for parameter in run.network.parameters()}
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        kept[name] = sum(size for address, size in sizes.items() if address not in weights)
    one, other = kept.values()
    assert other == pytest.approx(one, rel=0.03)
