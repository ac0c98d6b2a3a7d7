from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmos_nemo.catalog import DiTShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.network import open_network
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.models.common.dit.model import DiT
from cosmos_nemo.training.widened import starting_rules
from tests.fakes import tiny_network
from tests.parallel.train_worker import CARD, write_start

NARROW = CARD.network
WIDE = replace(NARROW, takes_given_mask=True)
PATCHES = "x_embedder.proj.1.weight"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("widened") / "start"
    write_start(folder)
    return folder


@torch.no_grad()
def answer(network: DiT, mask: torch.Tensor | None) -> torch.Tensor:
    x = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1))
    return network(
        x,
        modulation=network.modulate(torch.tensor([0.3])),
        text=network.encode_text(text),
        positions=network.positions((3, 4, 4), fps=24),
        given_mask_B1THW=mask,
    )


def loaded(shape: DiTShape, start: Path) -> DiT:
    network, checkpoint = tiny_network(shape, seed=8), open_network(start)
    load_into(network, checkpoint=checkpoint, rules=starting_rules(shape, checkpoint))
    return network


def test_it_begins_with_the_answers_of_the_network_it_comes_from_whatever_is_given(
    start: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answer(loaded(NARROW, start), None)
    assert caplog.text == ""
    wide = loaded(WIDE, start)
    assert "of a network that is told no frames" in caplog.text
    for mask in (torch.zeros(1, 1, 3, 4, 4), torch.ones(1, 1, 3, 4, 4)):
        torch.testing.assert_close(answer(wide, mask), expected)
    columns = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    wide.x_embedder.get_parameter("proj.1.weight").data[:, 64:68] = columns
    assert (answer(wide, torch.ones(1, 1, 3, 4, 4)) - expected).abs().max() > 1e-2


def test_the_columns_of_the_mask_are_zero_and_the_others_those_of_the_file(start: Path) -> None:
    checkpoint = open_network(start)
    rule = starting_rules(WIDE, checkpoint)[PATCHES]
    whole, narrow = rule.read(checkpoint), starting_rules(NARROW, checkpoint)[PATCHES].read(checkpoint)
    assert whole.shape == rule.shape == (64, 72) and rule.stored_shape() == narrow.shape
    assert torch.equal(whole[:, :64], narrow[:, :64]) and torch.equal(whole[:, 68:], narrow[:, 64:])
    assert (whole[:, 64:68] == 0).all() and narrow[:, 64:].abs().min() > 0
    part = rule.read(checkpoint, (slice(3, 9), slice(60, 70)))
    assert torch.equal(part, whole[3:9, 60:70])
    [back] = rule.split(whole)
    assert torch.equal(back, narrow)


def test_a_file_with_a_mask_is_read_as_it_is(tmp_path: Path) -> None:
    write_start(tmp_path / "wide", replace(CARD, network=WIDE))
    checkpoint = open_network(tmp_path / "wide")
    assert starting_rules(WIDE, checkpoint)[PATCHES].read(checkpoint)[:, 64:68].abs().min() > 0
    with pytest.raises(CheckpointError, match="x_embedder"):
        starting_rules(NARROW, checkpoint)


def test_a_file_of_another_size_is_refused_as_ever(start: Path) -> None:
    with pytest.raises(CheckpointError, match="of another shape"):
        starting_rules(replace(WIDE, ffn_hidden_size=256), open_network(start))
