"""Networks that are told frames learn the same on one rank and on two, unbroken and interrupted."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.parallel import launcher, train_worker
from tests.parallel.train_worker import Case, told
from tests.unit.training import given_worker
from tests.unit.training.given_worker import tiny

SCRIPT = Path(given_worker.__file__)
MODELS = ("Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator")
FIRST = (
    Case(name="one"),
    Case(name="dp2", num_ranks=2),
    Case(name="cp2", num_ranks=2, settings={"context_parallel": 2}),
    Case(name="tp2", num_ranks=2, settings={"tensor_parallel": 2}),
    Case(name="micro2", settings={"micro_batch_size": 2}),
    Case(name="begun", settings={"num_steps": 1}),
)
SECOND = (Case(name="resumed", log="begun", run={"resume": True}),)


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given")
    train_worker.write_start(path / "start", tiny(request.param))
    train_worker.write_cases(path, FIRST)
    launcher.run_ranks(2, SCRIPT, request.param, str(path), timeout=200)
    train_worker.write_cases(path, SECOND)
    launcher.run_ranks(1, SCRIPT, request.param, str(path), timeout=200)
    return path


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    checkpoint = train_worker.checkpoint_of(folder, name, step=3)
    return train_worker.weights_in(checkpoint, tiny(MODELS[0]))


@pytest.mark.parametrize("name", [case.name for case in FIRST[1:5]])
def test_losses_gradients_and_weights_are_those_of_one_rank(folder: Path, name: str) -> None:
    one, many = told(folder, "one"), told(folder, name)
    assert len(one["losses"]) == 3 and one["error"] == ""
    assert many["losses"] == pytest.approx(one["losses"], rel=2e-6)
    assert many["norms"] == pytest.approx(one["norms"], rel=2e-6)
    expected = weights(folder, "one")
    for key, weight in weights(folder, name).items():
        assert float((weight - expected[key]).abs().max()) < 1e-5, key


def test_the_columns_of_the_mask_learn_as_all_others_do(folder: Path) -> None:
    name = "x_embedder.proj.1.weight"
    before = train_worker.weights_in(folder / "start", tiny(MODELS[0]))[name]
    moved = (weights(folder, "one")[name] - before).abs().amax(dim=0)
    assert (moved[:-4] > 1e-4).all()
    # The padding mask is zero always: weight decay alone moves its columns.
    assert moved[-4:].max() < moved[:-4].min()


def test_an_interrupted_run_goes_on_bit_for_bit(folder: Path) -> None:
    whole = told(folder, "one")["losses"]
    assert told(folder, "begun")["losses"] + told(folder, "resumed")["losses"] == whole
    expected = weights(folder, "one")
    assert all(torch.equal(weight, expected[key]) for key, weight in weights(folder, "begun").items())
