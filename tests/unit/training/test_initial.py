from dataclasses import replace

import pytest
import torch

from cosmos_nemo.catalog import DiTShape, Family
from cosmos_nemo.checkpoint.load import rank_index
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.training.initial import initialize
from tests.fakes import TINY, FakeGroup, tiny_network

PREDICT2 = replace(TINY, family=Family.PREDICT2, takes_given_mask=True)


def fresh(seed: int = 0, shape: DiTShape = TINY) -> dict[str, torch.Tensor]:
    network = tiny_network(shape, seed=9)
    initialize(network, seed=seed, tp_rank=0, tp_size=1)
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def test_a_seed_decides_every_weight_and_another_seed_makes_others() -> None:
    first, again, other = fresh(1), fresh(1), fresh(2)
    for name, weight in first.items():
        assert torch.equal(weight, again[name])
        is_constant = bool((weight == weight.flatten()[0]).all())
        assert torch.equal(weight, other[name]) == is_constant, name


@pytest.mark.parametrize("shape", [TINY, PREDICT2], ids=lambda shape: shape.family)
def test_norms_are_one_and_what_ends_a_modulation_or_the_network_is_zero(shape: DiTShape) -> None:
    ends = ("adaLN_modulation.2.weight", "t_embedder.1.linear_2.weight", "final_layer.linear.weight")
    for name, weight in fresh(shape=shape).items():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        elif name.endswith(ends):
            assert (weight == 0).all(), name
        else:
            assert float(weight.std()) > 0.005, name


def test_predict2_has_the_same_weights_but_for_the_tables_it_lacks() -> None:
    tables = {name for name in parameter_shapes(TINY) if name.startswith("extra_pos_embedder")}
    assert len(tables) == 3
    assert fresh(shape=PREDICT2).keys() == parameter_shapes(PREDICT2).keys() == fresh().keys() - tables


def test_matrices_keep_the_size_of_what_goes_through_them() -> None:
    weights = fresh()
    kv = weights["decoder.layers.1.cross_attention.linear_kv.weight"]
    assert float(kv.std()) == pytest.approx(TINY.text_dim**-0.5, rel=0.05)
    end = weights["decoder.layers.1.mlp.linear_fc2.weight"]
    assert float(end.std()) == pytest.approx((TINY.ffn_hidden_size * 3 * TINY.num_layers) ** -0.5, rel=0.05)
    assert float(end.abs().max()) <= 3.0001 * (TINY.ffn_hidden_size * 3 * TINY.num_layers) ** -0.5
    assert float(weights["extra_pos_embedder.pos_emb_h"].std()) == pytest.approx(0.02, rel=0.1)


def test_no_two_matrices_are_the_same() -> None:
    random = [weight for weight in fresh().values() if weight.ndim > 1 and weight.abs().max() > 0]
    starts = {tuple((weight.flatten()[:4] / weight.std()).tolist()) for weight in random}
    assert len(starts) == len(random)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_tensor_parallel_ranks_hold_the_halves_of_the_network_of_one(rank: int) -> None:
    from cosmos_nemo.models.build import build_network
    from cosmos_nemo.models.common.backend import torch_backend
    from cosmos_nemo.parallel.groups import start_alone

    cpu = torch.device("cpu")
    alone = start_alone(cpu).collection
    half = build_network(
        TINY,
        backend=torch_backend(),
        pg_collection=_with_two_tensor_ranks(alone, rank),
        device=cpu,
        dtype=torch.float32,
    )
    initialize(half, seed=1, tp_rank=rank, tp_size=2)
    whole, shapes = fresh(1), parameter_shapes(TINY)
    for name, parameter in half.named_parameters():
        part = rank_index(name, shape=shapes[name], rank=rank, size=2)
        assert torch.equal(parameter, whole[name][part]), name


def _with_two_tensor_ranks(collection: object, rank: int) -> object:
    import copy

    two = copy.copy(collection)
    two.tp = FakeGroup(ranks=2, here=rank)  # type: ignore[attr-defined]
    return two
