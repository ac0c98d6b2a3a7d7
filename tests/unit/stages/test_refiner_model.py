import inspect
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.refiner_names import refiner_rules, refiner_shape, refiner_shapes
from cosmos_nemo.stages.refiner_model import build_refiner, refiner_config
from cosmos_nemo.tools.standin_refiner import Names, write_refiner

CPU = torch.device("cpu")
ROWS, COLUMNS = 10, 12  # more than one window of eight
MARKS = ("image", "vision_start", "vision_end")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an output and norms that show every difference."""
    folder = tmp_path_factory.mktemp("refiner")
    write_refiner(folder, seed=0)
    draw = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name == "lm_head.weight":
            tensor.copy_(torch.randn(tensor.shape, generator=draw))
        elif tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape, generator=draw) * 0.3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(released, tmp_path / "refiner")


def built(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return build_refiner(folder, checkpoint=open_checkpoint(folder), device=CPU, dtype=dtype)


def theirs(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, local_files_only=True
    ).eval()


def inputs(model: Any) -> dict[str, Tensor]:
    """A chat with one image, as both releases of transformers take it."""
    image, start, end = (getattr(model.config, f"{name}_token_id") for name in MARKS)
    tokens_1L = torch.tensor([[5, 6, 7, start, *[image] * (ROWS * COLUMNS // 4), end, 8, 9, 10, 11]])
    found = {
        "input_ids": tokens_1L,
        "attention_mask": torch.ones_like(tokens_1L),
        "pixel_values": torch.randn(ROWS * COLUMNS, 1176, generator=torch.Generator().manual_seed(2)),
        "image_grid_thw": torch.tensor([[1, ROWS, COLUMNS]]),
    }
    # A newer one wants to be told where images are.
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        found["mm_token_type_ids"] = (tokens_1L == image).int()
    return found


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(**inputs(model)).logits[0]
    assert isinstance(found, Tensor)
    return found


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "config.json").read_text())
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_that_of_transformers_to_the_last_bit(dtype: torch.dtype, released: Path) -> None:
    ours, expected = built(released, dtype), theirs(released, dtype)
    for of in (torch.nn.Module.named_parameters, torch.nn.Module.named_buffers):
        wanted, found = dict(of(expected)), dict(of(ours))
        assert found.keys() == wanted.keys() and found
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
    assert torch.equal(logits(ours), logits(expected))
    assert logits(ours).float().std() > 0.5
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())


def test_every_part_attends_by_one_kernel(released: Path) -> None:
    model = built(released)
    parts = (model, model.model.visual, model.model.language_model)
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}


@pytest.mark.parametrize("names", ["released", "newer"])
def test_both_forms_of_names_make_the_same_model(names: Names, tmp_path: Path) -> None:
    write_refiner(tmp_path / "one", seed=3)
    write_refiner(tmp_path / "other", seed=3, names=names)
    assert torch.equal(logits(built(tmp_path / "one")), logits(built(tmp_path / "other")))


def test_what_transformers_saves_is_read(released: Path, tmp_path: Path) -> None:
    expected = theirs(released)
    expected.save_pretrained(tmp_path)
    assert torch.equal(logits(built(tmp_path)), logits(expected))


def test_weights_in_several_files_are_read(folder: Path) -> None:
    expected = logits(built(folder))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    place = {name: files[i % 2] for i, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(built(folder)), expected)
    (folder / files[1]).unlink()
    with pytest.raises(CheckpointError, match=files[1]):
        built(folder)


def test_an_output_that_is_the_embeddings_may_be_left_out(folder: Path) -> None:
    edit_config(folder, lambda content: content.update(tie_word_embeddings=True))
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    model = built(folder)
    assert torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)
    assert torch.equal(logits(model), logits(theirs(folder)))


def test_settings_in_the_newer_form_make_the_same_model(folder: Path) -> None:
    expected = logits(built(folder))

    def renew(content: dict[str, Any]) -> None:
        moved = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads")
        moved = (*moved, "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size")
        rotary = {"rope_type": "default", "rope_theta": content.pop("rope_theta")}
        rotary |= {"mrope_section": content.pop("rope_scaling")["mrope_section"]}
        content["text_config"] = {name: content.pop(name) for name in moved} | {"rope_parameters": rotary}
        content["text_config"]["model_type"] = "qwen2_5_vl_text"

    edit_config(folder, renew)
    assert torch.equal(logits(built(folder)), expected)


def test_the_base_of_the_angles_is_that_of_the_settings(folder: Path) -> None:
    before = logits(built(folder))
    edit_config(folder, lambda content: content.update(rope_theta=100.0))
    assert not torch.allclose(logits(built(folder)), before)
    assert torch.equal(logits(built(folder)), logits(theirs(folder)))


def test_building_draws_no_random_numbers(released: Path) -> None:
    before = torch.get_rng_state()
    built(released)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_released_sizes_have_the_released_number_of_parameters(tmp_path: Path) -> None:
    """Qwen2.5-VL-7B-Instruct's config.json, with what it leaves out; 8.29 billion parameters."""
    content = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "vision_config": {"hidden_size": 1280, "in_chans": 3, "spatial_patch_size": 14},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    shape = refiner_shape(tmp_path)
    sizes = refiner_shapes(shape)
    assert sum(torch.Size(size).numel() for size in sizes.values()) == 8_292_166_656
    assert len(sizes) == 729
    assert (shape.image_token, shape.tower.patch_size, shape.is_tied) == (151_655, 14, False)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "model.layers.1.self_attn.k_proj.bias",
            r"missing, first: model\.layers\.1\.self_attn\.k_proj\.bias",
        ),
        ("visual.merger.mlp.2.weight", r"missing, first: visual\.merger\.mlp\.2\.weight"),
        ("lm_head.weight", r"1 of \d+ tensors missing, first: lm_head\.weight"),
    ],
)
def test_a_missing_tensor_is_named_before_memory_is_taken(
    name: str, complaint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(name))
    monkeypatch.setattr("cosmos_nemo.stages.refiner_model.refiner_config", None)
    with pytest.raises(CheckpointError, match=complaint):
        built(folder)


def test_a_tensor_of_another_shape_and_one_too_many_are_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"visual.extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"belong to another network, first: visual\.extra"):
        built(folder)
    edit_weights(folder, lambda tensors: tensors.pop("visual.extra"))
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(95)}))
    with pytest.raises(CheckpointError, match=r"first: model\.norm\.weight is \(95,\), not \(96,\)"):
        built(folder)


def test_tables_that_an_old_file_holds_are_not_asked_for(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"visual.rotary_pos_emb.inv_freq": torch.zeros(4)}))
    refiner_rules(refiner_shape(folder), open_checkpoint(folder))


def test_a_language_model_alone_is_no_refiner(folder: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(96)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no Qwen2\.5-VL.*They are model\.norm\.weight"):
        built(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "llava"}, r"holds a llava model where a Qwen2\.5-VL is needed"),
        ({"hidden_size": None}, "hidden_size must be a whole number above 0, but is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number above 0, but is 0"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number above 0, but is 'many'"),
        ({"vision_config": 3}, "vision_config must be an object, but is 3"),
        ({"vision_config": {"out_hidden_size": 5}}, "speaks to a model of width 5, not 96"),
    ],
)
def test_settings_that_make_no_model_are_an_error(
    change: dict[str, Any], complaint: str, folder: Path
) -> None:
    edit_config(folder, lambda content: content.update(change))
    with pytest.raises(CheckpointError, match=complaint):
        refiner_shape(folder)


def test_missing_settings_are_an_error(folder: Path) -> None:
    edit_config(folder, lambda content: content.pop("num_key_value_heads"))
    with pytest.raises(CheckpointError, match=r"num_key_value_heads must be .*, but is missing"):
        refiner_shape(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"is no Qwen2\.5-VL folder: config\.json is missing"):
        refiner_shape(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rope_scaling": None}, "does not say mrope_section"),
        ({"text_config": {"layer_types": ["no such attention"] * 2}}, "is no config of a Qwen2.5-VL"),
    ],
)
def test_settings_that_transformers_refuses_are_an_error(
    change: dict[str, Any], complaint: str, folder: Path
) -> None:
    edit_config(folder, lambda content: content.update(change))
    with pytest.raises(CheckpointError, match=complaint):
        refiner_config(folder)


def test_numbers_that_are_not_finite_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    with caplog.at_level(logging.WARNING):
        built(folder)
    assert "model.language_model.norm.weight has 96 NaN" in caplog.text
