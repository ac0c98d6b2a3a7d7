"""One rank of tests/parallel/train_worker.py, of networks that are told frames."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from cosmos_nemo.catalog import CARDS, ModelCard
from tests.parallel import train_worker


def tiny(name: str) -> ModelCard:
    """The nano model of that name, as small as the workers' own."""
    network = replace(train_worker.CARD.network, takes_given_mask=True)
    return replace(CARDS[name], network=network)


if __name__ == "__main__":
    train_worker.CARD = tiny(sys.argv[1])
    train_worker.main(Path(sys.argv[2]), "cpu")
    os._exit(0)  # gloo's teardown at exit was seen to abort
