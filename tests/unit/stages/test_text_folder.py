import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.text_folder import check_text_folder, weight_files
from cosmos_nemo.tools.standin_text import write_text_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text_encoder(tmp_path, text_dim=16, seed=0)
    return tmp_path


def split_into_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({name: weights[name] for name in weights if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize("layout", [lambda folder: None, split_into_shards, as_pickle])
def test_a_complete_folder_of_any_layout_passes(layout: Callable[[Path], None], folder: Path) -> None:
    layout(folder)
    check_text_folder(folder, text_dim=16)


def test_the_whole_file_is_preferred_to_shards_as_transformers_does(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    split_into_shards(folder)
    assert [path.name for path in weight_files(folder)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    (folder / "model.safetensors").write_bytes(whole)
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]


def break_folder(folder: Path, fault: str) -> None:
    match fault:
        case "no config":
            (folder / "config.json").unlink()
        case "config is no JSON":
            (folder / "config.json").write_text("{")
        case "config is a list":
            (folder / "config.json").write_text("[]")
        case "another model":
            change_config(folder, model_type="bert")
        case "another width":
            change_config(folder, d_model=1024)
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "truncated":
            truncate(folder / "model.safetensors")
        case "missing shard":
            split_into_shards(folder)
            (folder / "model-00002-of-00002.safetensors").unlink()
        case "truncated shard":
            split_into_shards(folder)
            truncate(folder / "model-00002-of-00002.safetensors")
        case "empty index":
            split_into_shards(folder)
            (folder / "model.safetensors.index.json").write_text("{}")
        case "truncated pickle":
            as_pickle(folder)
            truncate(folder / "pytorch_model.bin")
        case "empty pickle":
            as_pickle(folder)
            (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no config", "is no T5 folder: config.json is missing"),
        ("config is no JSON", "config.json cannot be read as JSON"),
        ("config is a list", "must hold a JSON object, but holds a list"),
        ("another model", "holds a bert model where a T5 is needed"),
        ("another width", r"1024 numbers .* but the model takes 16"),
        ("no tokenizer", "tokenizer.json is missing"),
        ("no weights", "has no weights"),
        ("truncated", r"model\.safetensors"),
        ("missing shard", r"2 shards, of which 1 are missing, first: model-00002-of-00002\.safetensors"),
        ("truncated shard", r"model-00002-of-00002\.safetensors"),
        ("empty index", "names 0 shards"),
        ("truncated pickle", r"pytorch_model\.bin is truncated"),
        ("empty pickle", r"pytorch_model\.bin is truncated"),
    ],
)
def test_a_folder_that_cannot_work_is_refused(fault: str, message: str, folder: Path) -> None:
    break_folder(folder, fault)
    with pytest.raises(CheckpointError) as caught:
        check_text_folder(folder, text_dim=16)
    assert re.search(message, str(caught.value)) and str(folder) in str(caught.value)
