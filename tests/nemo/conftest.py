"""Published files of small networks of every family, and the recipes by the name they are installed under.

Importing NeMo takes seconds; where it is not installed, what needs it is skipped.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.catalog import CARDS
from cosmos_nemo.checkpoint.convert import lazy_network
from cosmos_nemo.checkpoint.locate import EMBEDDED
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.token_names import token_rules
from cosmos_nemo.checkpoint.writer import write_model_pt
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_model_pt
from tests.test_layering import ROOT
from tests.tiny_tokens import BASE, TEXT, random_weights

GOLDEN = ROOT / "tests" / "golden"
NANO = "Cosmos-Nano-Text2World"
DECODED_BY = "Cosmos-Predict1-4B"
"""The model whose diffusion decoder the golden one is a small copy of."""


needs_nemo = pytest.mark.skipif(
    find_spec("nemo") is None, reason="NeMo is not installed: pip install cosmos-nemo[nemo]"
)


@pytest.fixture(scope="session", autouse=True)
def _installed_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The checkout's recipes, whatever is installed."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "cosmos_nemo_recipes").symlink_to(ROOT / "recipes")
    sys.path.insert(0, str(folder))


@dataclass(frozen=True)
class Published:
    """A file as it was published: `source` is what NeMo's import is given, `config` of which model it is."""

    path: Path
    source: str
    config: dict[str, Any] | None = None
    """None: it is told by its sizes."""


def published_nano(card: str, folder: Path, scheme: str) -> Published:
    """A nano model without what post-training wrote beside the diagonal blocks of adaLN, as released ones."""
    shape, checkpoint = CARDS[card].network, open_checkpoint(EMBEDDED / card / "nemo")
    tensors = {
        name: LazyTensor.of(
            _block_diagonal(rule.read(checkpoint).clone())
            if name.endswith("adaLN_modulation.2.weight") and name.startswith("decoder")
            else rule.read(checkpoint)
        )
        for name, rule in network_rules(shape, checkpoint).items()
    }
    write_model_pt(folder, tensors, shape=shape)
    return Published(folder / "model.pt", f"{scheme}://{folder / 'model.pt'}", {"model": card})


def _block_diagonal(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape[0] // 3, matrix.shape[1] // 3
    for i in range(3):
        for j in range(3):
            if i != j:
                matrix[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = 0
    return matrix


def published_decoder(folder: Path) -> Published:
    golden = load_file(GOLDEN / "predict1_ar_diffusion_decoder.safetensors")
    net = {name.replace("weights.", "net."): t for name, t in golden.items() if name.startswith("weights.")}
    folder.mkdir()
    torch.save(net, folder / "model.pt")
    return Published(folder / "model.pt", f"predict1://{folder / 'model.pt'}")


def published_tokens(shape: Any, folder: Path) -> Published:
    weights = {name: LazyTensor.of(t.bfloat16()) for name, t in random_weights(shape).items()}
    write_token_model_pt(folder, weights, shape=shape)
    return Published(folder / "model.pt", f"predict1://{folder / 'model.pt'}")


PUBLISHED: dict[str, Callable[[Path], Published]] = {
    "Text2World": lambda folder: published_nano(NANO, folder, "predict1"),
    "Video2World": lambda folder: published_nano("Cosmos-Nano-Video2World", folder, "predict1"),
    "WorldInterpolator": lambda folder: published_nano("Cosmos-Nano-WorldInterpolator", folder, "predict1"),
    "Predict2": lambda folder: published_nano("Cosmos-Nano-Predict2-Video2World", folder, "predict2"),
    "diffusion decoder": published_decoder,
    "token transformer": lambda folder: published_tokens(BASE, folder),
    "token transformer with text": lambda folder: published_tokens(TEXT, folder),
}


@pytest.fixture(scope="session")
def all_published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Published]:
    root, made = tmp_path_factory.mktemp("published"), {}

    def of(family: str) -> Published:
        if family not in made:
            made[family] = PUBLISHED[family](root / family)
        return made[family]

    return of


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest, all_published: Callable[[str], Published]) -> Published:
    """One family after the other."""
    return all_published(request.param)


@pytest.fixture
def text2world(all_published: Callable[[str], Published], tmp_path: Path) -> Published:
    """A copy, to be damaged."""
    path = tmp_path / "source" / "model.pt"
    path.parent.mkdir()
    shutil.copyfile(all_published("Text2World").path, path)
    return Published(path, f"predict1://{path}", {"model": NANO})


def model_of(file: Published) -> Any:
    """The NeMo model that the file is asked for by."""
    from cosmos_nemo_recipes.model import CosmosConfig, CosmosModel

    return CosmosModel(None if file.config is None else CosmosConfig(**file.config))


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The stored tensors by their stored names."""
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name).clone() for name in checkpoint.names()}


def our_reading(folder: Path, shape: Any) -> dict[str, Tensor]:
    """module.NAME -> tensor, without NeMo and Megatron."""
    checkpoint = open_checkpoint(folder)
    rules = token_rules if hasattr(shape, "vocab_size") else network_rules
    tensors = lazy_network(checkpoint, rules=rules(shape, checkpoint))
    return {f"module.{name}": tensor.read() for name, tensor in tensors.items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [
        name
        for name, tensor in expected.items()
        if found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor)
    ]
    assert not different
