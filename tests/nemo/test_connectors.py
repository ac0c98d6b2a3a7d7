"""NeMo's import_ckpt and export_ckpt, on a CPU and with nothing patched."""

import shutil
from pathlib import Path
from threading import Thread

import pytest
import torch

from cosmos_nemo.checkpoint.convert import convert
from cosmos_nemo.checkpoint.locate import EMBEDDED, LocateError
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from tests.nemo.conftest import GOLDEN, NANO, Published, assert_same_bits, model_of, needs_nemo, tensors_of

pytestmark = needs_nemo


def imported(file: Published, target: Path, *, overwrite: bool = False) -> Path:
    from nemo.lightning import io

    return io.import_ckpt(model_of(file), file.source, output_path=target, overwrite=overwrite)


def exported(checkpoint: Path, to: str, target: Path, *, overwrite: bool = False) -> Path:
    from nemo.lightning import io

    return io.export_ckpt(checkpoint, to, output_path=target, overwrite=overwrite)


def test_what_is_imported_exported_and_imported_again_has_the_same_bits(
    published: Published, tmp_path: Path
) -> None:
    nemo = imported(published, tmp_path / "nemo")
    assert exported(nemo, "safetensors", tmp_path / "exported") == tmp_path / "exported"
    assert_same_bits(
        tensors_of(tmp_path / "exported" / "model.safetensors"), _of_the_network(tensors_of(published.path))
    )
    again = Published(tmp_path / "exported", f"safetensors://{tmp_path / 'exported'}", published.config)
    imported(again, tmp_path / "again")
    for name in ("weights/__0_0.distcp", "weights/.metadata", "context/io.json", "context/model.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (nemo / name).read_bytes(), name
    assert not list(tmp_path.glob("*.lock"))


def _of_the_network(tensors: dict) -> dict:
    return {name: t for name, t in tensors.items() if "logvar" not in name and "pos_embedder.seq" not in name}


def test_an_import_writes_what_cosmos_nemo_convert_writes(published: Published, tmp_path: Path) -> None:
    imported(published, tmp_path / "nemo")
    model = (published.config or {}).get("model")
    convert(published.path, tmp_path / "converted", to="nemo", model=model)
    files = {path.relative_to(tmp_path / "nemo") for path in (tmp_path / "nemo").rglob("*") if path.is_file()}
    assert {Path("context/io.json"), Path("weights/metadata.json")} < files
    for file in files - {Path("weights/common.pt")}:
        assert (tmp_path / "nemo" / file).read_bytes() == (tmp_path / "converted" / file).read_bytes(), file


def test_a_model_pt_and_a_diffusers_folder_come_out_as_they_went_in(
    text2world: Published, tmp_path: Path
) -> None:
    nemo = imported(text2world, tmp_path / "nemo")
    exported(nemo, "predict1", tmp_path / "predict1")
    assert_same_bits(tensors_of(tmp_path / "predict1"), tensors_of(text2world.path))
    exported(nemo, "diffusers", tmp_path / "diffusers")
    assert (tmp_path / "diffusers" / "config.json").is_file()
    back = Published(tmp_path, f"diffusers://{tmp_path / 'diffusers'}", text2world.config)
    assert_same_bits(tensors_of(imported(back, tmp_path / "back")), tensors_of(nemo))


def test_the_released_nemo_folder_is_imported_with_its_bits(tmp_path: Path) -> None:
    file = Published(GOLDEN / "nemo_text_zarr", f"zarr://{GOLDEN / 'nemo_text_zarr'}")
    found = tensors_of(imported(file, tmp_path / "nemo"))
    stored = tensors_of(file.path)
    assert {"module.x_embedder.proj.1.weight", "module.decoder.layers.mlp.linear_fc1.weight"} < found.keys()
    assert_same_bits(found, {name: stored[name] for name in found})


def test_a_post_trained_network_comes_back_from_safetensors_with_its_bits(tmp_path: Path) -> None:
    """Training fills the blocks beside the diagonal of adaLN's matrices."""
    source = EMBEDDED / NANO / "nemo"
    nemo = imported(Published(source, f"cosmos://{source}", {"model": NANO}), tmp_path / "nemo")
    assert_same_bits(tensors_of(nemo), tensors_of(source))
    out = exported(nemo, "safetensors", tmp_path / "exported")
    back = imported(Published(out, f"safetensors://{out}", {"model": NANO}), tmp_path / "back")
    assert_same_bits(tensors_of(back), tensors_of(source))


def test_an_export_that_has_no_room_for_a_post_trained_network_says_so(tmp_path: Path) -> None:
    source = EMBEDDED / NANO / "nemo"
    nemo = imported(Published(source, f"cosmos://{source}", {"model": NANO}), tmp_path / "nemo")
    with pytest.raises(CheckpointError, match="which only NeMo's layout and safetensors keep"):
        exported(nemo, "predict1", tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["nemo"]


def test_llms_calls_are_the_same(text2world: Published, tmp_path: Path) -> None:
    from nemo.collections import llm

    nemo = llm.import_ckpt(model_of(text2world), text2world.source, output_path=tmp_path / "nemo")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        llm.import_ckpt(model_of(text2world), text2world.source, output_path=tmp_path / "nemo")
    llm.export_ckpt(nemo, "predict1", output_path=tmp_path / "exported")
    assert_same_bits(tensors_of(tmp_path / "exported"), tensors_of(text2world.path))


def test_a_model_without_a_config_becomes_what_is_found(published: Published, tmp_path: Path) -> None:
    from nemo.lightning import io

    from cosmos_nemo_recipes.model import CosmosModel

    model = CosmosModel()
    nemo = io.import_ckpt(model, published.source, output_path=tmp_path / "nemo")
    found = io.load_context(nemo, subpath="model.config")
    assert (model.config.model, model.config.shape) == (found.model, found.shape)
    shapes = {name: tuple(p.shape) for name, p in _built(model).named_parameters()}
    stored = open_checkpoint(nemo)
    assert shapes["output_layer.weight" if "output_layer.weight" in shapes else "affline_norm.weight"] in {
        stored.shape(name) for name in stored.names()
    }


def _built(model):
    model.configure_model()
    return model.module


def test_import_from_puts_the_checkpoint_into_nemos_cache_once(
    text2world: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nemo.lightning.base

    from cosmos_nemo_recipes.model import CosmosModel

    monkeypatch.setattr(nemo.lightning.base, "NEMO_MODELS_CACHE", tmp_path / "cache")
    model = CosmosModel.import_from(text2world.source)
    assert model.config.shape.hidden_size == 256
    assert tmp_path / "cache" in model.ckpt_path.parents
    written = (model.ckpt_path / "weights" / ".metadata").stat().st_mtime_ns
    again = CosmosModel.import_from(text2world.source)
    assert again.ckpt_path == model.ckpt_path
    assert (model.ckpt_path / "weights" / ".metadata").stat().st_mtime_ns == written


def test_another_model_than_the_files_is_refused_and_nothing_written(
    text2world: Published, tmp_path: Path
) -> None:
    for name, complaint in (
        ("Cosmos-Nano-Video2World", "It looks like Cosmos-Nano-Text2World"),
        ("Cosmos-Predict1-7B-Text2World", "It looks like Cosmos-Nano-Text2World"),
        ("Cosmos-Predict1-4B", "Cosmos-Predict1-4B is autoregressive"),
    ):
        wrong = Published(text2world.path, text2world.source, {"model": name})
        with pytest.raises(CheckpointError, match=complaint):
            imported(wrong, tmp_path / "nemo")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_the_decoder_and_the_transformer_of_a_model_are_not_taken_for_each_other(
    all_published, tmp_path: Path
) -> None:
    decoder = all_published("diffusion decoder")
    sizes = {"network": {"num_layers": 2}}
    wrong = Published(
        decoder.path, decoder.source, {"model": "Cosmos-Predict1-4B", "overrides": _sizes_of(decoder.path)}
    )
    assert sizes["network"].items() <= wrong.config["overrides"]["network"].items()
    with pytest.raises(CheckpointError, match=r"diffusion_decoder=True"):
        imported(wrong, tmp_path / "nemo")
    right = Published(decoder.path, decoder.source, wrong.config | {"diffusion_decoder": True})
    imported(right, tmp_path / "nemo")
    assert {path.name for path in tmp_path.iterdir()} == {"nemo"}


def _sizes_of(path: Path) -> dict:
    from cosmos_nemo.checkpoint.identity import identify

    return identify(open_checkpoint(path), model=None).overrides


def test_sizes_that_the_config_states_are_those_of_the_checkpoint(all_published, tmp_path: Path) -> None:
    from nemo.lightning import io

    source = all_published("Text2World")
    config = {"model": NANO, "overrides": {"network": {"rope_ratios_THW": [1.0, 1.5, 1.5]}}}
    nemo = imported(Published(source.path, source.source, config), tmp_path / "nemo")
    assert io.load_context(nemo, subpath="model").config.shape.rope_ratios_THW == (1.0, 1.5, 1.5)
    assert "rope_ratios_THW" in (nemo / "card.json").read_text()
    (nemo / "card.json").unlink()  # NeMo's own trainer writes none
    exported(nemo, "predict1", tmp_path / "exported")
    assert "rope_ratios_THW" in (tmp_path / "exported" / "card.json").read_text()


@pytest.mark.parametrize(
    ("missing", "complaint"), [("end", "truncated or damaged"), ("all", "no file of torch")]
)
def test_a_truncated_file_is_refused_and_what_stood_there_stays(
    text2world: Published, tmp_path: Path, missing: str, complaint: str
) -> None:
    nemo = imported(text2world, tmp_path / "nemo")
    before = tensors_of(nemo)
    content = text2world.path.read_bytes()
    text2world.path.write_bytes(content[: len(content) // 2] if missing == "end" else b"")
    with pytest.raises(CheckpointError, match=rf"model\.pt.* {complaint}"):
        imported(text2world, tmp_path / "nemo", overwrite=True)
    assert_same_bits(tensors_of(nemo), before)
    data = nemo / "weights" / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp"):
        exported(nemo, "safetensors", tmp_path / "exported")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "nemo"}


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_overwrite_replaces_whatever_is_there_and_without_it_nothing_is_touched(
    text2world: Published, tmp_path: Path, there: str
) -> None:
    nemo, target = imported(text2world, tmp_path / "nemo"), tmp_path / "target"
    (tmp_path / "other").mkdir()
    {
        "file": lambda: target.write_text("mine"),
        "folder": lambda: shutil.copytree(tmp_path / "source", target),
        "link": lambda: target.symlink_to(tmp_path / "other"),
    }[there]()
    for call in (
        lambda **o: imported(text2world, target, **o),
        lambda **o: exported(nemo, "predict1", target, **o),
    ):
        with pytest.raises(CheckpointError, match="target exists already: pass overwrite=True"):
            call()
        call(overwrite=True)
        assert open_checkpoint(target).names()
    assert (tmp_path / "other").is_dir()
    assert not list(tmp_path.glob(".target*"))


@pytest.mark.parametrize("above", [False, True])
def test_a_checkpoint_is_not_written_over_itself(text2world: Published, tmp_path: Path, above: bool) -> None:
    target = text2world.path.parent if above else text2world.path
    with pytest.raises(CheckpointError, match="name another output_path"):
        imported(text2world, target, overwrite=True)
    assert tensors_of(text2world.path)


def test_the_moving_average_and_another_type_are_taken_when_asked_for(all_published, tmp_path: Path) -> None:
    """As Predict2's .pt files may hold it."""
    from nemo.lightning import io

    file = all_published("Predict2")
    weights = tensors_of(file.path)
    both = weights | {name.replace("net.", "net_ema."): -tensor for name, tensor in weights.items()}
    torch.save(both, tmp_path / "both.pt")
    source = f"predict2://{tmp_path / 'both.pt'}"
    plain = io.import_ckpt(model_of(file), source, output_path=tmp_path / "plain")
    average = io.import_ckpt(
        model_of(file), source, output_path=tmp_path / "average", averaged=True, dtype=torch.float32
    )
    expected = {name: -tensor.float() for name, tensor in tensors_of(plain).items()}
    assert_same_bits(tensors_of(average), expected)
    assert io.load_context(average, subpath="model").config.params_dtype == torch.float32


def test_a_layout_of_another_name_is_refused(text2world: Published, tmp_path: Path) -> None:
    wrong = Published(text2world.path, f"zarr://{text2world.path}", text2world.config)
    with pytest.raises(CheckpointError, match="is in the layout torch, not zarr: import cosmos://"):
        imported(wrong, tmp_path / "nemo")
    with pytest.raises(ValueError, match="No connector found for extension 'gguf'"):
        imported(Published(text2world.path, f"gguf://{text2world.path}"), tmp_path / "nemo")


def test_a_models_name_stands_for_its_weights(tmp_path: Path) -> None:
    """Those of the nano models ship with the package; others come from the hub, which tests cannot reach."""
    from nemo.lightning import io

    from cosmos_nemo_recipes.model import CosmosModel

    model = CosmosModel()
    nemo = io.import_ckpt(model, "cosmos://Cosmos-Nano-Video2World", output_path=tmp_path / "nemo")
    assert_same_bits(tensors_of(nemo), tensors_of(EMBEDDED / "Cosmos-Nano-Video2World" / "nemo"))
    assert model.config.model == "Cosmos-Nano-Video2World"
    interpolator = io.import_ckpt(
        CosmosModel(), "cosmos://Cosmos-Nano-WorldInterpolator", output_path=tmp_path / "interpolator"
    )
    assert io.load_context(interpolator, subpath="model").config.model == "Cosmos-Nano-WorldInterpolator"
    with pytest.raises(LocateError, match=r"download/diffusion\.py"):
        io.import_ckpt(
            CosmosModel(), "cosmos://nvidia/Cosmos-Predict1-7B-Text2World", output_path=tmp_path / "7b"
        )
    assert {path.name for path in tmp_path.iterdir()} == {"nemo", "interpolator"}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pt does not exist"):
        imported(Published(tmp_path, f"cosmos://{tmp_path / 'nothing.pt'}"), tmp_path / "nemo")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_with_one_target_write_it_once(text2world: Published, tmp_path: Path) -> None:
    """As ranks do that all import what they are about to train; the lock also holds between threads."""
    steps: list[int] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            connector = model_of(text2world).importer(text2world.source)
            connector(tmp_path / "nemo", on_tensor=lambda done, total: steps.append(done))
        except Exception as error:
            failed.append(error)

    connector = model_of(text2world).importer(text2world.source)
    threads = [Thread(target=run)]

    def start_the_other(done: int, total: int) -> None:
        if done == 1:
            threads[0].start()
        if done == total:
            threads[0].join(timeout=1)
            assert threads[0].is_alive(), "it did not wait"

    connector(tmp_path / "nemo", on_tensor=start_the_other)
    threads[0].join()
    assert (failed, steps) == ([], [])
