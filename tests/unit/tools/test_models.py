import argparse

import pytest

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.tools import models


def test_every_card_is_told_with_its_task_sizes_and_place(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    models.add_arguments(parser)
    assert models.run(parser.parse_args([])) == 0
    shown = capsys.readouterr().out
    for name, card in CARDS.items():
        after = shown.partition(f"{name}\n")[2].splitlines()
        network = card.network if card.tokens is None else card.tokens.network
        said = f"{card.task.value}; {network.num_layers} layers of width {network.hidden_size}"
        assert after[0].strip() == said, name
        assert card.sources.weights in after[2]
    interpolator = shown.partition("Cosmos-Predict1-7B-WorldInterpolator\n")[2].splitlines()
    assert interpolator[1] == "  10 frames of 1280 x 704 at 24 fps; RES, 35 steps, guidance -1"
    tokens = shown.partition("Cosmos-Nano-Autoregressive\n")[2].splitlines()
    assert tokens[1] == "  33 frames of 128 x 128 at 24 fps; temperature 1, top-p 0.8"
