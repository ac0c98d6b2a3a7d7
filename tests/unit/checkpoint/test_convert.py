import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.catalog import CatalogError
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.convert import WRITERS, convert, lazy_network
from cosmos_nemo.checkpoint.locate import EMBEDDED
from cosmos_nemo.checkpoint.names import network_rules
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.writer import write_zarr
from tests.unit.checkpoint.conftest import GOLDEN, SHAPE

ADALN = "decoder.layers.1.adaLN.adaLN_modulation.2.weight"


@pytest.fixture
def dense(network, tmp_path):
    """A post-trained network: its fused adaLN matrix is non-zero beside the diagonal."""
    changed = network[ADALN].clone()
    changed[0, -1] = 1
    torch.save(network | {ADALN: changed}, tmp_path / "dense.pt")
    return tmp_path / "dense.pt"


@pytest.mark.parametrize("to", ["nemo", "predict1", "safetensors", "diffusers"])
def test_any_layout_becomes_any_other_bit_for_bit(
    any_layout, tmp_path, to, network, read_network, assert_equal
):
    convert(any_layout, tmp_path / "new", to=to)
    assert_equal(read_network(tmp_path / "new"), network)


@pytest.mark.parametrize("place", ["repository", "~/repository"])
def test_a_card_json_at_the_root_of_a_repository_comes_along(layouts, tmp_path, monkeypatch, place):
    shutil.copytree(layouts["torch_dist weights"], tmp_path / "repository" / "nemo" / "weights")
    (tmp_path / "repository" / "card.json").write_text('{"num_steps": 4}')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    convert(Path(place), tmp_path / "new", to="safetensors")
    assert read_card_file(tmp_path / "new")["num_steps"] == 4


def test_predict1_through_nemo_and_back_is_the_same_file(predict1, layouts, tmp_path, assert_equal):
    convert(layouts["model.pt"], tmp_path / "nemo", to="nemo")
    convert(tmp_path / "nemo", tmp_path / "back", to="safetensors")
    back = open_checkpoint(tmp_path / "back")
    upstream = {
        name: tensor for name, tensor in predict1.items() if "logvar" not in name and ".seq" not in name
    }
    assert_equal({name: back.read(name) for name in back.names()}, upstream)


def test_predict1_through_nemo_and_back_is_a_model_pt_of_the_same_names_and_numbers(
    predict1, layouts, tmp_path, assert_equal
):
    convert(layouts["model.pt"], tmp_path / "nemo", to="nemo")
    convert(tmp_path / "nemo", tmp_path / "back", to="predict1")
    back = torch.load(tmp_path / "back" / "model.pt", weights_only=True)
    upstream = {
        name: tensor for name, tensor in predict1.items() if "logvar" not in name and ".seq" not in name
    }
    assert_equal(back, upstream)


def test_nemo_through_model_pt_and_back_is_the_same_checkpoint_to_the_byte(layouts, tmp_path):
    convert(layouts["torch_dist"], tmp_path / "direct", to="nemo")
    convert(layouts["torch_dist"], tmp_path / "predict1", to="predict1")
    convert(tmp_path / "predict1", tmp_path / "back", to="nemo")
    direct, back = (tmp_path / name / "weights" / "__0_0.distcp" for name in ("direct", "back"))
    assert back.read_bytes() == direct.read_bytes()
    assert read_card_file(tmp_path / "back") == read_card_file(tmp_path / "predict1") != {}


@pytest.mark.parametrize("to", ["nemo", "safetensors"])
def test_a_dense_network_is_exact(dense, tmp_path, read_network, assert_equal, to):
    convert(dense, tmp_path / "new", to=to)
    assert_equal(read_network(tmp_path / "new"), read_network(dense))


def test_a_dense_network_comes_back_from_safetensors_byte_for_byte(dense, tmp_path):
    convert(dense, tmp_path / "direct", to="nemo")
    convert(tmp_path / "direct", tmp_path / "safetensors", to="safetensors")
    assert all(name.startswith("module.") for name in load_file(tmp_path / "safetensors/model.safetensors"))
    convert(tmp_path / "safetensors", tmp_path / "back", to="nemo")
    direct, back = (tmp_path / name / "weights/__0_0.distcp" for name in ("direct", "back"))
    assert back.read_bytes() == direct.read_bytes()


NANO_KINDS = ("Text2World", "Video2World", "WorldInterpolator", "Predict2-Video2World", "Autoregressive")


@pytest.mark.parametrize("kind", NANO_KINDS)
def test_a_nano_model_comes_back_from_safetensors_byte_for_byte(kind, tmp_path):
    shipped = EMBEDDED / f"Cosmos-Nano-{kind}" / "nemo"
    convert(shipped, tmp_path / "safetensors", to="safetensors", model=f"Cosmos-Nano-{kind}")
    convert(tmp_path / "safetensors", tmp_path / "back", to="nemo", model=f"Cosmos-Nano-{kind}")
    first, back = (folder / "weights/__0_0.distcp" for folder in (shipped, tmp_path / "back"))
    assert back.read_bytes() == first.read_bytes()


def test_a_tensor_that_is_looked_at_twice_is_counted_once(layouts, tmp_path, network):
    counts = []
    target = tmp_path / "new"
    convert(layouts["zarr"], target, to="safetensors", on_tensor=lambda *count: counts.append(count))
    assert counts == [(done, len(network)) for done in range(1, len(network) + 1)]


@pytest.mark.parametrize("to", ["predict1", "diffusers"])
def test_a_dense_network_does_not_fit_other_names_and_leaves_nothing(dense, tmp_path, to):
    with pytest.raises(CheckpointError, match="which only NeMo's layout and safetensors keep"):
        convert(dense, tmp_path / "new", to=to)
    assert list(tmp_path.iterdir()) == [dense]


@pytest.mark.parametrize("to", [to for to in WRITERS if to != "predict2"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_conversion_that_is_stopped_leaves_nothing(layouts, tmp_path, network, to, stop):
    def stop_at_the_last(done, total):
        assert total == len(network)
        if done == total:
            raise stop

    with pytest.raises((KeyboardInterrupt, OSError)):
        convert(layouts["zarr"], tmp_path / "new", to=to, on_tensor=stop_at_the_last)
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_written_in_the_type_asked_for(layouts, tmp_path, network, read_network):
    convert(layouts["zarr"], tmp_path / "half", to="nemo", dtype=torch.bfloat16)
    half = read_network(tmp_path / "half")
    assert all(torch.equal(half[name], tensor.to(torch.bfloat16)) for name, tensor in network.items())
    convert(tmp_path / "half", tmp_path / "back", to="safetensors", dtype=torch.float32)
    back = read_network(tmp_path / "back")
    assert all(torch.equal(back[name], half[name].float()) for name in network)


def test_sizes_of_no_card_go_into_card_json(layouts, tmp_path, shape):
    identity = convert(layouts["zarr"], tmp_path / "nemo", to="nemo")
    assert identity.card.network == shape
    stated = read_card_file(tmp_path / "nemo")
    assert stated == json.loads(json.dumps(identity.overrides))
    again = convert(tmp_path / "nemo" / "weights", tmp_path / "again", to="nemo", model=identity.base.name)
    assert again.card == identity.card
    assert read_card_file(tmp_path / "again") == stated


def test_the_sources_card_json_is_kept(zarr, tmp_path):
    (zarr / "card.json").write_text('{"num_steps": 4, "network": {"rope_ratios_THW": [1.0, 1.0, 1.0]}}')
    convert(zarr, tmp_path / "new", to="diffusers")
    stated = read_card_file(tmp_path / "new")
    assert stated["num_steps"] == 4
    assert stated["network"]["rope_ratios_THW"] == [1.0, 1.0, 1.0]
    assert stated["network"]["num_layers"] == 2
    assert json.loads((tmp_path / "new" / "config.json").read_text())["rope_scale"] == [1.0, 1.0, 1.0]


def test_another_model_than_the_files_is_refused(layouts, tmp_path):
    with pytest.raises(CheckpointError, match="It looks like a Text2World network of 2 layers"):
        convert(layouts["zarr"], tmp_path / "new", to="nemo", model="Cosmos-1.0-Diffusion-7B-Text2World")
    with pytest.raises(CatalogError, match="--model 7B is unknown"):
        convert(layouts["zarr"], tmp_path / "new", to="nemo", model="7B")
    assert not (tmp_path / "new").exists()


def test_an_existing_target_is_refused_before_the_source_is_opened(tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(CheckpointError, match="new exists already"):
        convert(tmp_path / "nothing", tmp_path / "new", to="nemo")


def test_progress_is_told_after_each_tensor(layouts, tmp_path, network):
    steps = []
    convert(layouts["zarr"], tmp_path / "new", to="nemo", on_tensor=lambda *step: steps.append(step))
    assert steps == [(done, len(network)) for done in range(1, len(network) + 1)]


VIDEO = replace(SHAPE, takes_given_mask=True)


@pytest.fixture
def video_pt(tmp_path):
    """model.pt of a small Video2World, whose patches have a channel more."""
    tensors = load_file(GOLDEN / "predict1_dit_video_tiny.safetensors")
    net = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    assert net["net.x_embedder.proj.1.weight"].shape[1] == 72
    torch.save(net, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("via", ["nemo", "safetensors", "diffusers", "zarr"])
def test_a_video2world_goes_through_every_layout_and_back(
    video_pt, tmp_path, via, read_network, assert_equal
):
    if via == "zarr":
        checkpoint = open_checkpoint(video_pt)
        tensors = lazy_network(checkpoint, rules=network_rules(VIDEO, checkpoint))
        write_zarr(tmp_path / via, tensors, shape=VIDEO, card_overrides={})
    else:
        identity = convert(video_pt, tmp_path / via, to=via)
        assert identity.base.name == "Cosmos-1.0-Diffusion-7B-Video2World"
        assert identity.card.network == VIDEO
        assert "takes_given_mask" not in read_card_file(tmp_path / via)["network"]
    first = read_network(tmp_path / via, VIDEO)
    assert_equal(first, read_network(video_pt, VIDEO))
    convert(tmp_path / via, tmp_path / "back", to="predict1")
    back, source = (
        torch.load(path, weights_only=True) for path in (tmp_path / "back" / "model.pt", video_pt)
    )
    assert_equal(back, {n: t for n, t in source.items() if "logvar" not in n and ".seq" not in n})


@pytest.mark.parametrize("kind", ["Text2World", "Video2World"])
def test_a_network_with_other_inputs_than_the_models_is_refused(video_pt, layouts, tmp_path, kind):
    wrong = layouts["model.pt"] if kind == "Video2World" else video_pt
    with pytest.raises(CheckpointError) as caught:
        convert(wrong, tmp_path / "new", to="nemo", model=f"Cosmos-Nano-{kind}")
    other = "Text2World" if kind == "Video2World" else "Video2World"
    assert f"It looks like a {other} network of 2 layers" in str(caught.value)
    assert not (tmp_path / "new").exists()


PREDICT2 = "Cosmos-Predict2-2B-Video2World"


@pytest.fixture
def predict2_pt(tmp_path):
    """model.pt of a small Predict2 network in the released names, with what training left in it."""
    tensors = load_file(GOLDEN / "predict2_video2world_a.safetensors")
    net = {f"net.{name.removeprefix('weights.')}": t for name, t in tensors.items() if "weights." in name}
    assert any(name.startswith("net.pos_embedder") for name in net)
    torch.save(net, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("via", ["nemo", "safetensors", "diffusers"])
def test_a_network_of_predict2_goes_through_every_layout_and_back(predict2_pt, tmp_path, via, assert_equal):
    identity = convert(predict2_pt, tmp_path / via, to=via)
    assert identity.base.name == PREDICT2
    convert(tmp_path / via, tmp_path / "back", to="predict2")
    back, source = (
        torch.load(path, weights_only=True) for path in (tmp_path / "back" / "model.pt", predict2_pt)
    )
    assert_equal(back, {n: t for n, t in source.items() if "accum_" not in n and "pos_embedder" not in n})


def test_a_model_pt_of_the_other_family_is_refused(predict2_pt, layouts, tmp_path):
    for source, to, other in (
        (predict2_pt, "predict1", "predict2"),
        (layouts["zarr"], "predict2", "predict1"),
    ):
        with pytest.raises(CheckpointError, match=f"convert it --to {other}, not {to}"):
            convert(source, tmp_path / "out", to=to)
        assert not (tmp_path / "out").exists()
