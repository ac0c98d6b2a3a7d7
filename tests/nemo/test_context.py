"""What NeMo's load_context makes of context/, and Megatron's loader of the network that it names."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_nemo.catalog import CARDS, CatalogError
from cosmos_nemo.checkpoint.locate import EMBEDDED
from cosmos_nemo.checkpoint.token_identity import token_cards
from cosmos_nemo.training.nemo_checkpoint import save
from tests.nemo.conftest import NANO, Published, assert_same_bits, model_of, needs_nemo, our_reading
from tests.parallel.train_worker import CARD, alone
from tests.test_layering import ROOT

pytestmark = needs_nemo


def megatrons_reading(folder: Path) -> dict[str, torch.Tensor]:
    from megatron.core import dist_checkpointing
    from nemo.lightning import io

    model = io.load_context(folder, subpath="model")
    model.configure_model()
    assert all(parameter.isnan().all() for parameter in model.module.parameters())
    return dist_checkpointing.load(model.module.sharded_state_dict(prefix="module."), str(folder / "weights"))


def test_megatron_loads_the_network_of_the_context_with_the_bits_of_our_reader(
    published: Published, tmp_path: Path
) -> None:
    from nemo.lightning import io

    from cosmos_nemo_recipes.model import CosmosModel

    io.import_ckpt(model_of(published), published.source, output_path=tmp_path / "nemo")
    model = io.load_context(tmp_path / "nemo", subpath="model")
    assert type(model) is CosmosModel
    expected = our_reading(tmp_path / "nemo", model.config.shape)
    assert len(expected) > 15 and not any(tensor.isnan().any() for tensor in expected.values())
    assert_same_bits(megatrons_reading(tmp_path / "nemo"), expected)


NANO_KINDS = ("Text2World", "Video2World", "WorldInterpolator", "Predict2-Video2World", "Autoregressive")


@pytest.mark.parametrize("kind", NANO_KINDS)
def test_the_models_that_ship_with_the_package_are_nemo_checkpoints(kind: str) -> None:
    from nemo.lightning import io

    folder = EMBEDDED / f"Cosmos-Nano-{kind}" / "nemo"
    config = io.load_context(folder, subpath="model").config
    card = CARDS[f"Cosmos-Nano-{kind}"]
    assert (config.model, config.shape) == (card.name, card.tokens.network if card.tokens else card.network)
    assert_same_bits(megatrons_reading(folder), our_reading(folder, config.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_our_post_training_is_a_nemo_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    from nemo.lightning import io

    run = alone(num_steps=1, dtype=dtype)
    list(run.steps())
    folder = save(run, tmp_path, keep_states=1, context={"data": "somewhere"})
    config = io.load_context(folder, subpath="model").config
    assert (config.model, config.shape, config.params_dtype) == (CARD.name, CARD.network, dtype)
    assert_same_bits(megatrons_reading(folder), our_reading(folder, CARD.network))
    assert json.loads((folder / "context" / "training.json").read_text())["step"] == 1


def test_the_whole_context_and_the_config_alone_are_loaded_too(text2world: Published, tmp_path: Path) -> None:
    from nemo.lightning import io

    folder = io.import_ckpt(model_of(text2world), text2world.source, output_path=tmp_path / "nemo")
    whole = io.load_context(folder)
    assert (whole.model.config.model, whole.trainer, whole.extra) == (NANO, None, {})
    config = io.load_context(folder / "context", subpath="model.config")
    assert (config.model, config.num_layers, config.hidden_size) == (NANO, 4, 256)
    unbuilt = io.load_context(folder, subpath="model", build=False)
    assert unbuilt.config.model == NANO


def test_what_nemo_itself_writes_of_the_model_is_the_same_context(all_published: Any, tmp_path: Path) -> None:
    """io.json of ours, loaded and written again by NeMo, has the same classes and arguments."""
    from nemo.lightning import io
    from nemo.lightning.io.pl import TrainerContext

    decoder = all_published("diffusion decoder")
    folder = io.import_ckpt(model_of(decoder), decoder.source, output_path=tmp_path / "nemo")
    model = io.load_context(folder, subpath="model")
    TrainerContext(model=model, trainer=None, extra={}).io_dump(tmp_path / "theirs", yaml_attrs=["model"])
    ours, theirs = (_arguments(path / "io.json") for path in (folder / "context", tmp_path / "theirs"))
    assert ours == theirs
    assert ours["<root>.model.config.diffusion_decoder"] is True
    assert ours["<root>.model.config.overrides['network']['num_layers']"] == 2


def _arguments(file: Path) -> dict[str, Any]:
    """Where below the root -> what is there, of an io.json."""
    graph = json.loads(file.read_text())
    found: dict[str, Any] = {}

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            kind = node.get("type")
            name = kind.get("name") if isinstance(kind, dict) else node.get("name")
            for path in node.get("paths", []):
                found[path] = node.get("value", name)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
            visit(child)

    visit(graph["objects"])
    return found


def test_names_and_fields_that_do_not_exist_are_refused_with_the_nearest() -> None:
    from cosmos_nemo_recipes.model import CosmosConfig

    with pytest.raises(CatalogError, match="Nearest: Cosmos-Nano-Text2World"):
        CosmosConfig(model="Cosmos-Nano-Text2Wrld")
    with pytest.raises(CatalogError, match=r"num_layer is no field of a card\. Nearest: num_layers"):
        CosmosConfig(model=NANO, overrides={"network": {"num_layer": 2}})


def test_every_card_has_a_config_with_megatrons_sizes() -> None:
    from cosmos_nemo_recipes.model import CosmosConfig

    for name in {**CARDS, **token_cards()}:
        config = CosmosConfig(model=name)
        assert (config.num_layers, config.hidden_size) == (config.shape.num_layers, config.shape.hidden_size)
        assert config.kv_channels == config.shape.head_dim
    tokens = CosmosConfig(model="Cosmos-Predict1-5B-Video2World")
    assert (tokens.num_query_groups, tokens.gated_linear_unit, tokens.shape.text_dim) == (8, True, 1024)
    assert CosmosConfig(model="Cosmos-Predict1-4B", diffusion_decoder=True).shape.token_vocab == 64000


def test_training_in_nemos_loop_is_refused_with_the_command_that_trains() -> None:
    from cosmos_nemo_recipes.model import CosmosConfig, CosmosModel

    with pytest.raises(NotImplementedError, match="cosmos-nemo post-train"):
        CosmosModel(CosmosConfig(model=NANO)).training_step({})


def test_importing_the_recipes_imports_no_nemo(tmp_path: Path) -> None:
    (tmp_path / "cosmos_nemo_recipes").symlink_to(ROOT / "recipes")
    program = "import cosmos_nemo_recipes.cpu, sys\nprint('nemo' in sys.modules, 'torch' in sys.modules)"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] == "False"
