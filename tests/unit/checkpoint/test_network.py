from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import DiTShape, Family, find_card
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.checkpoint.reader import CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.writer import write_model_pt
from cosmos_nemo.tools.standin import standin_card
from cosmos_nemo.tools.standin_network import random_network

SHAPE: DiTShape = standin_card(find_card("Cosmos-Predict2-2B-Video2World")).network
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def regular(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Released name, without a prefix -> tensor."""
    folder = tmp_path_factory.mktemp("network") / "released"
    network = random_network(SHAPE, seed=0)
    write_model_pt(folder, {name: LazyTensor.of(t) for name, t in network.items()}, shape=SHAPE)
    return {name.removeprefix("net."): t for name, t in torch.load(folder / "model.pt").items()}


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes such a file with each set of tensors under its prefix, and more tensors as they are."""

    def write(more: dict[str, Tensor] | None = None, **of: dict[str, Tensor]) -> Path:
        content = {f"{prefix}.{name}": t for prefix, tensors in of.items() for name, t in tensors.items()}
        torch.save({**content, **(more or {})}, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return write


def _other(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 2 * tensor for name, tensor in tensors.items()}


def _read(path: Path, *, averaged: bool) -> dict[str, Tensor]:
    """Every tensor of the network, as it would be loaded."""
    checkpoint = open_network(path, averaged=averaged)
    rules = network_rules(SHAPE, checkpoint)
    # Else they would change with the file, of which they are a view.
    return {name: rule.read(checkpoint).clone() for name, rule in rules.items()}


def _assert_same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert read.keys() == expected.keys()
    assert [name for name in read if not torch.equal(read[name], expected[name])] == []


def test_the_shape_is_one_of_predict2() -> None:
    assert SHAPE.family is Family.PREDICT2


def test_of_a_file_with_both_each_is_read_whole_and_apart(save: Save, regular: dict[str, Tensor]) -> None:
    alone = _read(save(net=regular), averaged=False)
    assert alone.keys() == parameter_shapes(SHAPE).keys()
    _assert_same(_read(save(net=regular, net_ema=_other(regular)), averaged=False), alone)
    other = {name: 2 * tensor for name, tensor in alone.items()}
    _assert_same(_read(save(net=regular, net_ema=_other(regular)), averaged=True), other)
    _assert_same(_read(save(net_ema=_other(regular)), averaged=True), other)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_counters_of_a_training_are_passed_over(
    save: Save, regular: dict[str, Tensor], averaged: bool
) -> None:
    counters = {
        f"{prefix}.{name}": torch.ones(())
        for prefix in ("net", "net_ema")
        for name in ("accum_iteration", "accum_video_sample_counter", "pos_embedder.seq")
    }
    path = save(counters, net=regular, net_ema=regular)
    assert _read(path, averaged=averaged).keys() == parameter_shapes(SHAPE).keys()


def test_an_average_that_is_not_there_is_told(save: Save, regular: dict[str, Tensor]) -> None:
    path = save(net=regular)
    with pytest.raises(CheckpointError, match=r"model\.pt holds no moving average .* leave out --load_ema"):
        open_network(path, averaged=True)


def test_an_average_alone_is_not_taken_for_the_weights(save: Save, regular: dict[str, Tensor]) -> None:
    path = save(net_ema=regular)
    with pytest.raises(CheckpointError, match=r"moving average of its weights alone: pass --load_ema"):
        open_network(path)


def test_counters_of_the_weights_do_not_make_them_be_there(save: Save, regular: dict[str, Tensor]) -> None:
    path = save({"net.accum_iteration": torch.ones(())}, net_ema=regular)
    with pytest.raises(CheckpointError, match="pass --load_ema"):
        _read(path, averaged=False)


def test_a_tensor_that_the_average_lacks_is_not_taken_from_the_weights(
    save: Save, regular: dict[str, Tensor]
) -> None:
    average = dict(regular)
    del average["blocks.0.mlp.layer1.weight"]
    path = save(net=regular, net_ema=average)
    assert _read(path, averaged=False)
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors missing, .*blocks\.0\.mlp\.layer1\.weight"):
        _read(path, averaged=True)


def test_a_file_without_prefixes_holds_the_weights(tmp_path: Path, regular: dict[str, Tensor]) -> None:
    torch.save(regular, tmp_path / "model.pt")
    assert _read(tmp_path, averaged=False).keys() == parameter_shapes(SHAPE).keys()
    with pytest.raises(CheckpointError, match="leave out --load_ema"):
        open_network(tmp_path, averaged=True)


def test_a_truncated_file_is_told_to_be_so(save: Save, regular: dict[str, Tensor]) -> None:
    path = save(net=regular)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_network(path, averaged=True)
