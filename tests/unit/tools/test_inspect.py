import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.fingerprint import fingerprint
from cosmos_nemo.checkpoint.locate import EMBEDDED
from cosmos_nemo.checkpoint.reader import LazyTensor
from cosmos_nemo.checkpoint.writer.token_transformer import write_token_model_pt, write_token_torch_dist
from cosmos_nemo.tools import inspect
from tests.tiny_tokens import SCALED, TEXT, random_weights

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def run(capsys):
    """Exit status, printed lines, complaint."""

    def call(*words):
        parser = argparse.ArgumentParser()
        inspect.add_arguments(parser)
        status = inspect.run(parser.parse_args([str(word) for word in words]))
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err

    return call


def facts(lines):
    return dict(line.split(maxsplit=1) for line in lines)


def test_a_nemo_checkpoint_is_described(run):
    status, lines, error = run(GOLDEN / "nemo_text_torch_dist")
    assert (status, error) == (0, "")
    found = facts(lines)
    weights = GOLDEN / "nemo_text_torch_dist" / "weights"
    assert found["path"] == str(weights)
    assert found["layout"] == "torch_dist"
    assert found["format"] == "nemo"
    assert found["model"].startswith("nearest to Cosmos-")
    assert found["tensors"] == "27"
    assert found["dtypes"] == "float32 (27)"
    assert found["fingerprint"] == fingerprint(weights)
    assert '"num_layers": 2' in lines[[line[:7] for line in lines].index("differs")]


@pytest.mark.parametrize(("path", "format_"), [("nemo_text_zarr", "nemo")])
def test_parameters_are_counted_without_what_is_ignored(run, path, format_):
    _, lines, _ = run(GOLDEN / path)
    found = facts(lines)
    ignored = 128 + 128 + 128 + 16  # logvar's three, pos_embedder.seq
    counts = {name: int(found[name].replace(",", "")) for name in ("numbers", "parameters")}
    assert counts["numbers"] - counts["parameters"] == ignored
    assert found["format"] == format_


def test_tensors_are_listed_when_asked_for(run):
    _, lines, _ = run(GOLDEN / "nemo_text_zarr", "--tensors")
    assert len([line for line in lines if line.startswith("module.")]) == 27
    assert any(line.split(maxsplit=2) == ["module.affline_norm.weight", "float32", "[64]"] for line in lines)


def test_a_card_json_is_shown(run, tmp_path):
    for file in (GOLDEN / "nemo_text_torch_dist" / "weights").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "card.json").write_text('{"num_steps": 4}')
    _, lines, _ = run(tmp_path)
    assert facts(lines)["card.json"] == '{"num_steps": 4}'


def test_a_card_json_at_a_repositorys_root_is_that_of_the_checkpoint_in_its_nemo_folder(run, tmp_path):
    """As for the doors, which take it if the repository is named, and not if its nemo folder is."""
    shutil.copytree(GOLDEN / "nemo_text_torch_dist" / "weights", tmp_path / "nemo" / "weights")
    (tmp_path / "card.json").write_text('{"num_steps": 4}')
    _, lines, _ = run(tmp_path)
    assert facts(lines)["card.json"] == '{"num_steps": 4}' == json.dumps(read_card_file(tmp_path))
    assert any(line.startswith("differs in") and '"num_steps": 4' in line for line in lines)
    _, lines, _ = run(tmp_path / "nemo")
    assert "card.json" not in facts(lines) and read_card_file(tmp_path / "nemo") == {}


def test_so_is_that_of_an_autoregressive_transformer(run, tmp_path):
    lazy = {name: LazyTensor.of(tensor) for name, tensor in random_weights(SCALED).items()}
    write_token_torch_dist(tmp_path / "nemo", lazy, shape=SCALED)
    (tmp_path / "card.json").write_text('{"tokens": {"network": {"latent_THW": [3, 2, 4]}}}')
    _, lines, _ = run(tmp_path)
    assert facts(lines)["video"] == "3 x 2 x 4 tokens, as card.json says"
    assert "card.json" in facts(lines)


def test_a_checkpoint_of_another_kind_is_described_too(run, tmp_path):
    torch.save({"mean": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "model.pt")
    status, lines, _ = run(tmp_path)
    assert status == 0
    found = facts(lines)
    assert found["format"] == "no transformer of Cosmos, neither diffusion nor autoregressive"
    assert found["size"].startswith("6 bytes")


def test_a_damaged_checkpoint_is_a_sentence_and_two(run, tmp_path):
    status, lines, error = run(tmp_path)
    assert (status, lines) == (2, [])
    assert error == f"cosmos-nemo inspect: {tmp_path} holds no checkpoint. It holds nothing\n"


def test_a_bad_card_json_is_a_sentence_and_two(run, tmp_path):
    for file in (GOLDEN / "nemo_text_torch_dist" / "weights").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "card.json").write_text('{"networc": {}}')
    status, _, error = run(tmp_path)
    assert status == 2
    assert "networc is no field of a card" in error


def test_its_arguments_need_no_torch():
    code = (
        "import cosmos_nemo.tools.inspect, cosmos_nemo.tools.convert, sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


def test_a_network_that_takes_given_frames_is_a_video2worlds(run, tmp_path):
    tensors = load_file(GOLDEN / "predict1_dit_video_tiny.safetensors")
    net = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    torch.save(net, tmp_path / "model.pt")
    status, lines, error = run(tmp_path / "model.pt")
    assert (status, error) == (0, "")
    assert facts(lines)["model"] == "nearest to Cosmos-1.0-Diffusion-7B-Video2World"
    (differs,) = [line for line in lines if line.startswith("differs in")]
    assert "takes_given_mask" not in differs


def test_models_of_the_same_sizes_are_told_together_unless_one_is_named(run, tmp_path):
    named = EMBEDDED / "Cosmos-Nano-WorldInterpolator" / "nemo"
    shutil.copytree(named / "weights", tmp_path / "mine")
    _, lines, _ = run(named)
    assert facts(lines)["model"] == "Cosmos-Nano-WorldInterpolator"
    _, lines, _ = run(tmp_path / "mine")
    assert facts(lines)["model"] == "Cosmos-Nano-Video2World or Cosmos-Nano-WorldInterpolator"


@pytest.mark.parametrize("layout", ["predict1", "nemo"])
def test_an_autoregressive_transformer_is_described(run, tmp_path, layout):
    write = {"predict1": write_token_model_pt, "nemo": write_token_torch_dist}[layout]
    lazy = {name: LazyTensor.of(tensor) for name, tensor in random_weights(TEXT).items()}
    write(tmp_path / "net", lazy, shape=TEXT)
    status, lines, error = run(tmp_path / "net")
    assert (status, error) == (0, "")
    found = facts(lines)
    assert found["family"] == "autoregressive transformer of video tokens"
    assert found["format"] == layout
    assert found["model"] == "nearest to Cosmos-Predict1-5B-Video2World"
    assert found["layers"] == "2, width 64 (MLP 96), 4 heads of 16, 2 of keys and values"
    assert (found["vocabulary"], found["text"]) == ("128 tokens", "width 24")
    told = "as of Cosmos-Predict1-5B-Video2World; no tensor tells"
    assert found["video"] == f"5 x 40 x 64 tokens, {told}"
    assert found["angles"] == f"scale 1, {told}"
    assert found["parameters"] == found["numbers"]


def test_what_a_card_json_says_of_the_tokens_is_told_as_its_word(run, tmp_path):
    lazy = {name: LazyTensor.of(tensor) for name, tensor in random_weights(SCALED).items()}
    network = {"rope_scale": 2.0, "latent_THW": [3, 2, 4]}
    write_token_model_pt(
        tmp_path / "net", lazy, shape=SCALED, card_overrides={"tokens": {"network": network}}
    )
    _, lines, _ = run(tmp_path / "net")
    found = facts(lines)
    assert found["video"] == "3 x 2 x 4 tokens, as card.json says"
    assert found["angles"] == "scale 2, as card.json says"


def test_an_autoregressive_transformer_that_lacks_a_tensor_is_a_sentence_and_two(run, tmp_path):
    lazy = {name: LazyTensor.of(tensor) for name, tensor in random_weights(TEXT).items()}
    write_token_model_pt(tmp_path / "net", lazy, shape=TEXT)
    path = tmp_path / "net" / "model.pt"
    tensors = torch.load(path, weights_only=True)
    del tensors["model.layers.1.ffn_norm.weight"]
    torch.save(tensors, path)
    status, _, error = run(path)
    assert status == 2
    assert "1 of 39 tensors missing, first: model.layers.1.ffn_norm.weight" in error


def test_a_diffusion_decoder_is_described(run, tmp_path):
    tensors = load_file(GOLDEN / "predict1_ar_diffusion_decoder.safetensors")
    net = {name.replace("weights.", "net."): t for name, t in tensors.items() if name.startswith("weights.")}
    torch.save(net, tmp_path / "model.pt")
    status, lines, error = run(tmp_path)
    assert (status, error) == (0, "")
    found = facts(lines)
    assert found["family"] == "diffusion decoder of Predict1's autoregressive models"
    assert found["model"] == "nearest to the diffusion decoder of Cosmos-Predict1-4B"
    assert found["vocabulary"] == "300 tokens, 6 channels each"
