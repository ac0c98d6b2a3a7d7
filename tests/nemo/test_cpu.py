"""NeMo's own strategy loads and saves our networks where there is no CUDA."""

from pathlib import Path

import pytest
import torch

from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.reader import open_checkpoint
from tests.nemo.conftest import (
    NANO,
    Published,
    assert_same_bits,
    model_of,
    needs_nemo,
    our_reading,
    tensors_of,
)

pytestmark = [
    needs_nemo,
    pytest.mark.skipif(torch.cuda.is_available(), reason="it is for machines without CUDA"),
]


def test_inside_the_device_is_the_cpu_and_afterwards_all_is_as_before() -> None:
    from nemo.lightning.io import pl

    from cosmos_nemo_recipes.cpu import nemo_on_cpu

    before = torch.cuda.synchronize, torch.cuda.current_device, pl._fix_tensors_device
    with nemo_on_cpu():
        torch.cuda.synchronize()
        assert torch.cuda.current_device() == torch.device("cpu")
    with pytest.raises(OSError, match="full"), nemo_on_cpu():
        raise OSError("full")
    assert (torch.cuda.synchronize, torch.cuda.current_device, pl._fix_tensors_device) == before


@pytest.mark.parametrize(
    "family", ["Video2World", "Predict2", "diffusion decoder", "token transformer with text"]
)
def test_nemos_strategy_loads_the_bits_of_our_reader(all_published, tmp_path: Path, family: str) -> None:
    from nemo.lightning import io

    file = all_published(family)
    folder = io.import_ckpt(model_of(file), file.source, output_path=tmp_path / "nemo")
    model, _ = model_of(file).importer(file.source).nemo_load(folder)
    found = {f"module.{name}": parameter.detach() for name, parameter in model.module.named_parameters()}
    assert_same_bits(found, our_reading(folder, model.config.shape))


@pytest.mark.parametrize("family", ["Text2World", "token transformer"])
def test_what_nemo_saves_is_read_by_us_and_by_its_context(all_published, tmp_path: Path, family: str) -> None:
    from nemo.lightning import io

    file: Published = all_published(family)
    folder = io.import_ckpt(model_of(file), file.source, output_path=tmp_path / "nemo")
    connector = model_of(file).importer(file.source)
    model, trainer = connector.nemo_load(folder)
    connector.nemo_save(tmp_path / "saved", trainer)
    assert open_checkpoint(tmp_path / "saved").layout == "torch_dist"
    assert_same_bits(tensors_of(tmp_path / "saved"), tensors_of(folder))
    assert read_card_file(tmp_path / "saved") == read_card_file(folder)
    again = io.load_context(tmp_path / "saved", subpath="model").config
    assert (again.model, again.shape, again.params_dtype) == (
        model.config.model,
        model.config.shape,
        model.config.params_dtype,
    )
    io.export_ckpt(tmp_path / "saved", "safetensors", output_path=tmp_path / "exported")
    io.export_ckpt(folder, "safetensors", output_path=tmp_path / "expected")
    assert_same_bits(tensors_of(tmp_path / "exported"), tensors_of(tmp_path / "expected"))


def test_a_network_that_nemo_set_up_is_saved_with_the_numbers_that_are_in_it(tmp_path: Path) -> None:
    from nemo.lightning import io

    from cosmos_nemo_recipes.model import CosmosConfig, CosmosModel

    model = CosmosModel(CosmosConfig(model=NANO, params_dtype=torch.bfloat16))
    connector = model.importer(f"cosmos://{NANO}")
    trainer = connector.nemo_setup(model)
    for count, parameter in enumerate(model.module.parameters()):
        parameter.fill_(count)
    connector.nemo_save(tmp_path / "saved", trainer)
    config = io.load_context(tmp_path / "saved", subpath="model").config
    assert (config.model, config.params_dtype) == (NANO, torch.bfloat16)
    found = our_reading(tmp_path / "saved", config.shape)
    for count, (name, parameter) in enumerate(model.module.named_parameters()):
        assert torch.equal(found[f"module.{name}"], torch.full_like(parameter, count)), name
