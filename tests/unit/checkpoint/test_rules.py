import pytest
import torch

from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.reader.base import Checkpoint
from cosmos_nemo.checkpoint.rules import (
    BlockDiagonal,
    GroupedHeads,
    InterleavedHeads,
    JoinedRows,
    Same,
    StackedLayer,
)

HEADS, HEAD_DIM, WIDTH = 4, 3, 5


def stored(tensors):
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
    return Checkpoint("file", layout="torch", tensors=lazy)


def numbered(*shape, start=0):
    return torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


QKV = {name: numbered(HEADS * HEAD_DIM, WIDTH, start=1000 * i) for i, name in enumerate("qkv")}
HEADWISE = InterleavedHeads(names=tuple("qkv"), shape=(3 * HEADS * HEAD_DIM, WIDTH), head_dim=HEAD_DIM)
GROUPED = {
    name: numbered(3 * rows, WIDTH, start=1000 * i)
    for i, (name, rows) in enumerate(zip("qkv", (6, 3, 3), strict=True))
}
GROUPWISE = GroupedHeads(names=tuple("qkv"), shape=(36, WIDTH), head_dim=HEAD_DIM, num_groups=3)
CASES = {
    "same": (Same(names=("a",), shape=(4, 5)), {"a": numbered(4, 5)}),
    "stacked": (StackedLayer(names=("a",), shape=(4, 5), layer=1, num_layers=3), {"a": numbered(3, 4, 5)}),
    "heads": (HEADWISE, QKV),
    "groups": (GROUPWISE, GROUPED),
    "rows": (
        JoinedRows(names=("a", "b"), shape=(4, 5)),
        {"a": numbered(2, 5), "b": numbered(2, 5, start=50)},
    ),
    "diagonal": (
        BlockDiagonal(names=("a", "b"), shape=(4, 6)),
        {"a": numbered(2, 3, start=1), "b": numbered(2, 3, start=50)},
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_the_tensor_has_the_shape_the_rule_says(case):
    rule, tensors = case
    assert tuple(rule.read(stored(tensors)).shape) == rule.shape
    stored_shapes = tuple(tuple(tensors[name].shape) for name in rule.names)
    assert stored_shapes == rule.stored_shapes()
    assert stored_shapes[0] == rule.stored_shape()


def test_splitting_undoes_reading(case):
    rule, tensors = case
    parts = dict(zip(rule.names, rule.split(rule.read(stored(tensors))), strict=True))
    if isinstance(rule, StackedLayer):
        assert torch.equal(parts["a"][0], tensors["a"][rule.layer])
    else:
        assert all(torch.equal(parts[name], tensors[name]) for name in rule.names)


def test_a_part_is_that_part_of_the_whole(case):
    rule, tensors = case
    whole = rule.read(stored(tensors))
    rows = slice(0, whole.shape[0] // 2 // 3 * 3) if rule is HEADWISE else slice(1, 3)
    rows = slice(9, 27) if rule is HEADWISE else slice(12, 36) if rule is GROUPWISE else rows
    for index in [(rows,), (rows, slice(2, 4)), (slice(None), slice(1, 2))]:
        assert torch.equal(rule.read(stored(tensors), index), whole[index])


def test_heads_stand_in_the_order_q_k_v():
    whole = HEADWISE.read(stored(QKV))
    for head in range(HEADS):
        own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        for part, name in enumerate("qkv"):
            at = (3 * head + part) * HEAD_DIM
            assert torch.equal(whole[at : at + HEAD_DIM], QKV[name][own])


def test_a_cut_head_is_our_own_mistake():
    with pytest.raises(AssertionError):
        HEADWISE.read(stored(QKV), (slice(0, HEAD_DIM),))
    with pytest.raises(AssertionError):
        GROUPWISE.read(stored(GROUPED), (slice(0, 9),))


def test_blocks_stand_on_the_diagonal_and_zeros_beside_them():
    rule, tensors = CASES["diagonal"]
    whole = rule.read(stored(tensors))
    assert torch.equal(whole[:2, :3], tensors["a"])
    assert torch.equal(whole[2:, 3:], tensors["b"])
    assert not whole[:2, 3:].any()
    assert not whole[2:, :3].any()


@pytest.mark.parametrize("place", [(0, 5), (3, 0)])
def test_a_dense_matrix_cannot_be_split_into_blocks(place):
    rule, tensors = CASES["diagonal"]
    whole = rule.read(stored(tensors))
    whole[place] = 1e-30
    with pytest.raises(CheckpointError, match="post-training made the blocks beside its diagonal non-zero"):
        rule.split(whole)
