import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.catalog import CARDS, overrides_of, with_overrides
from cosmos_nemo.checkpoint.card_file import read_card_file, write_card_file
from cosmos_nemo.checkpoint.convert import convert as convert_library
from cosmos_nemo.checkpoint.locate import EMBEDDED
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.writer.nemo_context import named_in_context
from cosmos_nemo.tools import convert
from cosmos_nemo.tools.standin import standin_card
from cosmos_nemo.tools.standin_tokens import write_token_transformer
from tests.unit.checkpoint.conftest import SHAPE

ZARR = Path(__file__).parents[2] / "golden" / "nemo_text_zarr"


@pytest.fixture
def run(capsys):
    """Exit status, what was printed, complaint."""

    def call(*words):
        parser = argparse.ArgumentParser()
        convert.add_arguments(parser)
        status = convert.run(parser.parse_args([str(word) for word in words]))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("to", "layout"),
    [
        *(("nemo", "torch_dist"), ("predict1", "torch")),
        *(("safetensors", "safetensors"), ("diffusers", "safetensors")),
    ],
)
def test_it_writes_the_layout_and_says_so(run, tmp_path, to, layout):
    status, out, error = run(ZARR, tmp_path / "new", "--to", to)
    assert (status, error) == (0, "")
    assert f"{tmp_path / 'new'}: " in out
    assert f"{tmp_path / 'new' / 'card.json'} says how it differs" in out
    assert open_checkpoint(tmp_path / "new").layout == layout


SEVEN, NANO = "Cosmos-Predict1-7B-Text2World", "Cosmos-Nano-Text2World"
NEAREST = "Cosmos-1.0-Diffusion-7B-Text2World"
"""To the sizes of the tiny network."""


def standin(folder, *, of):
    """The tiny network as if it were a small copy of the model called `of`."""
    shutil.copytree(ZARR, folder)
    card = CARDS[of]
    write_card_file(folder, overrides_of(replace(card, network=SHAPE), card))
    return folder


@pytest.mark.parametrize(
    "place", [SEVEN, f"{SEVEN}/nemo", f"models--nvidia--{SEVEN}/snapshots/0123abcd/nemo"]
)
def test_a_folder_with_a_card_file_is_of_the_model_it_is_called_after(run, tmp_path, monkeypatch, place):
    source = standin(tmp_path / place, of=SEVEN)
    monkeypatch.chdir(source.parent)
    status, out, error = run(source.name, tmp_path / "new", "--to", "predict1")
    assert (status, error) == (0, "")
    assert f"{SEVEN}, as predict1" in out
    assert with_overrides(CARDS[SEVEN], read_card_file(tmp_path / "new")).network == SHAPE
    status, out, _ = run(tmp_path / "new" / "model.pt", tmp_path / "again", "--to", "nemo", "--model", SEVEN)
    assert status == 0 and f"{SEVEN}, as nemo" in out


def test_a_flag_counts_more_than_the_folders_name(run, tmp_path):
    source = standin(tmp_path / SEVEN, of=NANO)
    status, out, _ = run(source, tmp_path / "new", "--to", "nemo", "--model", NANO)
    assert status == 0 and f"{NANO}, as nemo" in out


@pytest.mark.parametrize("name", ["mine", SEVEN])
def test_without_a_card_file_or_a_models_name_the_sizes_tell(run, tmp_path, name):
    source = standin(tmp_path / name, of=NANO)
    if name == SEVEN:
        (source / "card.json").unlink()
    status, out, _ = run(source, tmp_path / "new", "--to", "nemo")
    assert status == 0 and f"{NEAREST}, as nemo" in out


@pytest.mark.parametrize("to", ["nemo", "predict1"])
def test_the_type_can_be_chosen(run, tmp_path, to):
    run(ZARR, tmp_path / "new", "--to", to, "--dtype", "bf16")
    checkpoint = open_checkpoint(tmp_path / "new")
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((ZARR, ".", "--to", "nemo"), "exists already"),
        ((ZARR / "gone", "new", "--to", "nemo"), "does not exist"),
        ((ZARR, "new", "--to", "nemo", "--model", "7B"), "--model 7B is unknown"),
        (
            (ZARR, "new", "--to", "nemo", "--model", "Cosmos-Nano-Text2World"),
            "It looks like a Text2World network",
        ),
    ],
)
def test_what_is_wrong_is_a_sentence_and_two(run, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    status, out, error = run(*words)
    assert (status, out) == (2, "")
    assert error.startswith("cosmos-nemo convert: ")
    assert sentence in error
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written_is_a_sentence_and_one(run, tmp_path):
    (tmp_path / "file").touch()
    status, _, error = run(ZARR, tmp_path / "file" / "new", "--to", "nemo")
    assert status == 1
    assert error.startswith(f"cosmos-nemo convert: {tmp_path / 'file' / 'new'} was not written: ")


def test_a_network_that_the_layout_cannot_hold_is_a_sentence_and_two(run, tmp_path):
    """Full post-training made the fused adaLN matrix non-zero beside its diagonal."""
    convert_library(ZARR, tmp_path / "whole", to="nemo")
    checkpoint = open_checkpoint(tmp_path / "whole")
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.names()}
    tensors["module.decoder.layers.adaLN.adaLN_modulation.2.weight"][0, 0, -1] = 1
    torch.save(tensors, tmp_path / "dense.pt")
    status, out, error = run(tmp_path / "dense.pt", tmp_path / "new", "--to", "predict1")
    assert (status, out) == (2, "")
    assert "which only NeMo's layout and safetensors keep. Convert with --to nemo" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.pt", "whole"]


def test_a_disk_that_fills_up_is_a_sentence_and_one_and_leaves_nothing(run, tmp_path, monkeypatch):
    def half_a_file(_, path):
        path.write_bytes(b"PK half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half_a_file)
    status, out, error = run(ZARR, tmp_path / "new", "--to", "predict1")
    assert (status, out) == (1, "")
    assert f"{tmp_path / 'new'} was not written: " in error and "No space left" in error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_layout_is_refused_by_the_parser(run, tmp_path):
    with pytest.raises(SystemExit) as caught:
        run(ZARR, tmp_path / "new", "--to", "onnx")
    assert caught.value.code == 2


@pytest.mark.parametrize("name", ["Cosmos-Predict1-7B-Video2World", "Cosmos-Predict1-7B-WorldInterpolator"])
def test_models_of_the_same_sizes_are_told_apart_by_their_folders(run, tmp_path, name):
    tensors = load_file(ZARR.parent / "predict1_dit_video_tiny.safetensors")
    net = {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}
    (tmp_path / name).mkdir()
    torch.save(net, tmp_path / name / "model.pt")
    card, shape = CARDS[name], replace(SHAPE, takes_given_mask=True)
    write_card_file(tmp_path / name, overrides_of(replace(card, network=shape), card))
    status, out, error = run(tmp_path / name, tmp_path / "new", "--to", "nemo")
    assert (status, error) == (0, "") and f"{name}, as nemo" in out
    assert with_overrides(card, read_card_file(tmp_path / "new")) == replace(card, network=shape)


BETWEEN, ONWARDS = "Cosmos-Nano-WorldInterpolator", "Cosmos-Nano-Video2World"
"""Two models whose networks are the same."""


@pytest.mark.parametrize(
    ("folder", "has_context"),
    [("mine", True), (f"{BETWEEN}/nemo", False), (f"models--me--{BETWEEN}/snapshots/0123abcd/nemo", False)],
)
def test_of_models_of_the_same_sizes_it_is_the_one_that_nemos_context_or_a_folder_names(
    run, tmp_path, folder, has_context
):
    place = tmp_path / folder
    shutil.copytree(EMBEDDED / BETWEEN / "nemo", place)
    if not has_context:
        shutil.rmtree(place / "context")
    status, out, error = run(place, tmp_path / "new", "--to", "nemo")
    assert (status, out, error) == (0, f"{tmp_path / 'new'}: {BETWEEN}, as nemo\n", "")
    assert named_in_context(tmp_path / "new") == BETWEEN


def test_where_nothing_names_the_model_all_that_it_may_be_are_told(run, tmp_path):
    shutil.copytree(EMBEDDED / BETWEEN / "nemo" / "weights", tmp_path / "mine")
    status, out, error = run(tmp_path / "mine", tmp_path / "new", "--to", "safetensors")
    assert (status, error) == (0, "")
    also = f"{BETWEEN} has the same sizes: pass --model if it is that one."
    assert out == f"{tmp_path / 'new'}: {ONWARDS}, as safetensors\n{also}\n"
    status, out, _ = run(tmp_path / "mine", tmp_path / "again", "--to", "safetensors", "--model", BETWEEN)
    assert (status, out) == (0, f"{tmp_path / 'again'}: {BETWEEN}, as safetensors\n")


def test_a_card_json_is_of_the_model_that_the_context_beside_it_names(run, tmp_path):
    """Alone its sizes would be nearest to another model."""
    source = standin(tmp_path / SEVEN, of=SEVEN)
    assert run(source, tmp_path / "mine", "--to", "nemo")[0] == 0
    status, out, _ = run(tmp_path / "mine" / "weights", tmp_path / "new", "--to", "predict1")
    assert status == 0 and f"{SEVEN}, as predict1" in out
    assert read_card_file(tmp_path / "new") == read_card_file(source)


def test_an_autoregressive_model_is_called_after_its_folder(run, tmp_path):
    """Its stand-in is nearer to the sizes of the 4B."""
    name = "Cosmos-Predict1-12B"
    write_standin_network(CARDS[name], tmp_path / name)
    status, out, error = run(tmp_path / name, tmp_path / "new", "--to", "nemo")
    assert (status, error) == (0, "") and f"{name}, as nemo" in out
    assert read_card_file(tmp_path / "new") == read_card_file(tmp_path / name)


def write_standin_network(card, folder):
    small = standin_card(card)
    differs = overrides_of(small, card)
    write_token_transformer(small.tokens.network, folder, inner="", seed=0, card_overrides=differs)
