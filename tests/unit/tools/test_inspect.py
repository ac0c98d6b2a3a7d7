import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.checkpoint.fingerprint import fingerprint
from cosmos_nemo.tools import inspect

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


def test_a_checkpoint_of_another_kind_is_described_too(run, tmp_path):
    torch.save({"mean": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "model.pt")
    status, lines, _ = run(tmp_path)
    assert status == 0
    found = facts(lines)
    assert found["format"] == "no diffusion transformer of Cosmos"
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
