"""Networks that are told frames learn the same on one rank and on two, unbroken and interrupted."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import ModelCard
from tests.parallel import launcher, train_worker
from tests.parallel.train_worker import Case, tiny, told
from tests.unit.training import given_worker

SCRIPT = Path(given_worker.__file__)
MODELS = ("Cosmos-Nano-Video2World", "Cosmos-Nano-WorldInterpolator", "Cosmos-Nano-Predict2-Video2World")
FIRST = (
    Case(name="one"),
    Case(name="dp2", num_ranks=2),
    Case(name="cp2", num_ranks=2, settings={"context_parallel": 2}),
    Case(name="tp2", num_ranks=2, settings={"tensor_parallel": 2}),
    Case(name="micro2", settings={"micro_batch_size": 2}),
    Case(name="cp2_micro4", num_ranks=2, settings={"context_parallel": 2, "micro_batch_size": 4}),
    Case(name="not_recomputed", settings={"recompute": "off"}),
    Case(name="begun", settings={"num_steps": 1}),
)
SECOND = (Case(name="resumed", log="begun", run={"resume": True}),)


@pytest.fixture(scope="module", params=MODELS)
def card(request: pytest.FixtureRequest) -> ModelCard:
    return tiny(request.param)


@pytest.fixture(scope="module")
def folder(card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given")
    train_worker.write_start(path / "start", card)
    train_worker.write_cases(path, FIRST)
    launcher.run_ranks(2, SCRIPT, card.name, str(path), timeout=200)
    train_worker.write_cases(path, SECOND)
    launcher.run_ranks(1, SCRIPT, card.name, str(path), timeout=200)
    return path


def weights(folder: Path, card: ModelCard, name: str) -> dict[str, Tensor]:
    return train_worker.weights_in(train_worker.checkpoint_of(folder, name, step=3), card)


@pytest.mark.parametrize("name", [case.name for case in FIRST if case.name not in ("one", "begun")])
def test_losses_gradients_and_weights_are_those_of_one_rank(folder: Path, card: ModelCard, name: str) -> None:
    one, many = told(folder, "one"), told(folder, name)
    assert len(one["losses"]) == 3 and one["error"] == ""
    assert many["losses"] == pytest.approx(one["losses"], rel=2e-6)
    assert many["norms"] == pytest.approx(one["norms"], rel=2e-6)
    expected = weights(folder, card, "one")
    for key, weight in weights(folder, card, name).items():
        difference = (weight - expected[key]).abs()
        # A single weight whose gradients are next to nothing moves by their rounding: Adam divides by them.
        assert difference.mean() < 2e-7 and difference.max() < 5e-5, key


def test_the_columns_of_the_mask_learn_as_all_others_do(folder: Path, card: ModelCard) -> None:
    name = "x_embedder.proj.1.weight"
    before = train_worker.weights_in(folder / "start", card)[name]
    moved = (weights(folder, card, "one")[name] - before).abs().amax(dim=0)
    assert (moved[:-4] > 1e-4).all()
    # The padding mask is zero always: weight decay alone moves its columns.
    assert moved[-4:].max() < moved[:-4].min()


def test_an_interrupted_run_goes_on_bit_for_bit(folder: Path, card: ModelCard) -> None:
    whole = told(folder, "one")["losses"]
    assert told(folder, "begun")["losses"] + told(folder, "resumed")["losses"] == whole
    expected = weights(folder, card, "one")
    assert all(torch.equal(weight, expected[key]) for key, weight in weights(folder, card, "begun").items())
