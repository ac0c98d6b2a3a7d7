"""context/ as plain data. What NeMo makes of it: tests/nemo."""

import json
import sys

import pytest
import torch

from cosmos_nemo.checkpoint.convert import convert
from cosmos_nemo.checkpoint.reader import LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.writer import write_torch_dist
from cosmos_nemo.checkpoint.writer.nemo_context import NeMoContext, named_in_context, write_context


def leaves(folder):
    """Place -> value or name, of io.json."""
    graph = json.loads((folder / "context" / "io.json").read_text())
    found = {}
    for entry in graph["objects"].values():
        for _, item in entry["items"]:
            if isinstance(item, dict):
                found |= {path: item.get("value", item.get("name")) for path in item.get("paths", [])}
    return found


def test_it_names_the_model_its_sizes_and_its_type(tmp_path):
    context = NeMoContext(model="Cosmos-Predict1-4B", overrides={"num_steps": 4}, diffusion_decoder=True)
    write_context(tmp_path, context, dtype=torch.bfloat16)
    config = "<root>.model.config"
    assert leaves(tmp_path) == {
        f"{config}.model": "Cosmos-Predict1-4B",
        f"{config}.overrides['num_steps']": 4,
        f"{config}.diffusion_decoder": True,
        f"{config}.params_dtype": "bfloat16",
        "<root>.trainer": None,
    }
    readable = json.loads((tmp_path / "context" / "model.yaml").read_text())
    assert readable["_target_"] == "cosmos_nemo_recipes.model.CosmosModel"
    assert readable["config"]["params_dtype"] == "torch.bfloat16"


def test_its_model_is_read_back_and_what_is_no_context_names_none(tmp_path):
    assert named_in_context(tmp_path) is None
    write_context(tmp_path, NeMoContext(model="Cosmos-Predict1-4B", overrides={}), dtype=torch.bfloat16)
    assert named_in_context(tmp_path) == "Cosmos-Predict1-4B"
    for text in ("{", "[]", '{"objects": 1}', '{"objects": {"a": {"items": [[]]}}}', "\xff"):
        (tmp_path / "context" / "io.json").write_text(text, encoding="latin-1")
        assert named_in_context(tmp_path) is None


def test_every_reference_leads_to_an_object_that_comes_before_it(tmp_path):
    """fiddle reads objects in any order, and does not end where two refer to each other."""
    overrides = {"network": {"rope_ratios_THW": (1.0, 2.0, 2.0)}, "video": {"given_frames": [1, 9]}}
    write_context(tmp_path, NeMoContext(model="any", overrides=overrides), dtype=torch.float32)
    graph = json.loads((tmp_path / "context" / "io.json").read_text())
    seen = set()
    for key, entry in graph["objects"].items():
        references = [item["key"] for _, item in entry["items"] if isinstance(item, dict) and "key" in item]
        assert seen.issuperset(references)
        seen.add(key)
    assert graph["root"]["key"] in seen
    assert graph["refcounts"].keys() == seen


@pytest.mark.parametrize("to", ["nemo", "safetensors"])
def test_the_nemo_layout_has_a_context_and_the_others_have_none(layouts, tmp_path, to):
    convert(layouts["model.pt"], tmp_path / "out", to=to)
    assert (tmp_path / "out" / "context" / "io.json").is_file() == (to == "nemo")
    if to == "nemo":
        found = leaves(tmp_path / "out")
        assert found["<root>.model.config.model"] == "Cosmos-1.0-Diffusion-7B-Text2World"
        assert found["<root>.model.config.overrides['network']['num_layers']"] == 2
        assert found["<root>.model.config.params_dtype"] == "float32"


def test_the_type_is_that_of_the_largest_tensor(lazy, shape, tmp_path):
    half = {name: LazyTensor.of(tensor.read().bfloat16()) for name, tensor in lazy.items()}
    half["affline_norm.weight"] = lazy["affline_norm.weight"]
    write_torch_dist(tmp_path / "out", half, shape=shape, context=NeMoContext(model="any", overrides={}))
    assert leaves(tmp_path / "out")["<root>.model.config.params_dtype"] == "bfloat16"


def test_stated_fields_count_more_than_the_card_file_beside_the_source(zarr, tmp_path):
    (zarr / "card.json").write_text('{"num_steps": 4}')
    asked = {"num_steps": 9, "network": {"num_layers": 2}}
    identity = convert(zarr, tmp_path / "out", to="nemo", overrides=asked)
    assert identity.card.num_steps == 9
    assert json.loads((tmp_path / "out" / "card.json").read_text())["num_steps"] == 9


def test_writing_it_takes_no_nemo_and_the_reader_is_not_disturbed(layouts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nemo", None)
    monkeypatch.setitem(sys.modules, "fiddle", None)
    convert(layouts["model.pt"], tmp_path / "out", to="nemo")
    assert open_checkpoint(tmp_path / "out").layout == "torch_dist"
