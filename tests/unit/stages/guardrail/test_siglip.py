import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.guardrail.content_filter import FOLDER
from cosmos_nemo.stages.guardrail.siglip import (
    CACHE_NAME,
    build_siglip,
    check_siglip,
    encode,
    siglip_folder,
    to_pixels,
)
from cosmos_nemo.tools.standin_video_guard import write_video_guard

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guardrail")
    write_video_guard(folder, seed=0)
    weights = siglip_folder(folder / FOLDER) / "model.safetensors"
    draw = torch.Generator().manual_seed(1)  # no bias is zero, no norm is one
    stored = {name: t + 0.1 * torch.randn(t.shape, generator=draw) for name, t in load_file(weights).items()}
    save_file(stored, weights, {"format": "pt"})
    return folder / FOLDER


@pytest.fixture
def content(written: Path, tmp_path: Path) -> Path:
    """The content filter's folder, each test's own."""
    return Path(shutil.copytree(written, tmp_path / "content"))


@pytest.fixture
def folder(content: Path) -> Path:
    """SigLIP's own folder, each test's own."""
    return siglip_folder(content)


def picture(height: int, width: int, num_frames: int = 1) -> Tensor:
    """Noise of two scales: what is sharp and what is smooth are resized differently."""
    draw = np.random.RandomState(height)
    coarse = torch.from_numpy(draw.rand(num_frames, 3, 5, 5)) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    sharp = torch.from_numpy(draw.rand(num_frames, 3, height, width)) * 255
    return torch.where(sharp > 128, smooth, sharp).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@pytest.mark.parametrize(("height", "width"), [(384, 384), (704, 1280), (128, 128), (100, 500), (37, 384)])
def test_pixels_are_those_of_the_processor_but_for_single_levels(height: int, width: int) -> None:
    from transformers import SiglipImageProcessor

    size = {"height": 384, "width": 384}
    processor = SiglipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    frames = picture(height, width)
    expected = processor(images=[frames[0].numpy()], return_tensors="pt").pixel_values
    pixels = to_pixels(frames, size=384)
    assert pixels.shape == (1, 3, 384, 384) and pixels.dtype == torch.float32
    levels = (pixels - expected).abs() * 127.5
    assert levels.max() < 1.001
    assert (levels > 0.001).float().mean() < 0.002


def test_features_are_those_of_upstream(folder: Path) -> None:
    from transformers import SiglipImageProcessor, SiglipModel

    frames = picture(48, 80, num_frames=3)
    model = SiglipModel.from_pretrained(folder).eval()
    processor = SiglipImageProcessor.from_pretrained(folder)
    inputs = processor(images=[frame.numpy() for frame in frames], return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(**inputs)
        features = getattr(features, "pooler_output", features)  # a tensor before transformers 5
        ours = encode(build_siglip(folder, device=CPU, dtype=torch.float32), frames)
    expected = features / features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.02  # frames differ by more than the tolerance


def test_a_model_from_meta_is_the_one_that_transformers_builds(folder: Path) -> None:
    from transformers import SiglipVisionModel

    expected = SiglipVisionModel.from_pretrained(folder).eval()
    model = build_siglip(folder, device=CPU, dtype=torch.float32)
    tensors = dict(expected.named_parameters()) | dict(expected.named_buffers())
    ours = dict(model.named_parameters()) | dict(model.named_buffers())
    assert ours.keys() == tensors.keys() and any("position_ids" in name for name in ours)
    assert all(torch.equal(ours[name], tensors[name]) for name in ours)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).pooler_output, expected(pixels).pooler_output)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_bfloat16_features_are_close_float32_numbers(folder: Path) -> None:
    frames = picture(48, 80)
    with torch.no_grad():
        exact, rounded = (
            encode(build_siglip(folder, device=CPU, dtype=dtype), frames)
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)


def test_position_ids_in_the_file_are_ignored(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.embeddings.position_ids"] = torch.zeros(1, 16, dtype=torch.long)
    save_file(weights, folder / "model.safetensors")
    check_siglip(folder)
    model = build_siglip(folder, device=CPU, dtype=torch.float32)
    (positions,) = (buffer for name, buffer in model.named_buffers() if "position_ids" in name)
    assert positions.tolist() == [list(range(16))]


def test_the_snapshot_that_main_names_is_taken(content: Path, folder: Path) -> None:
    (folder.parent / "0000").mkdir()
    assert siglip_folder(content) == folder


def test_a_single_snapshot_needs_no_reference(content: Path, folder: Path) -> None:
    shutil.rmtree(content / CACHE_NAME / "refs")
    assert siglip_folder(content) == folder
    (folder.parent / "0000").mkdir()
    with pytest.raises(CheckpointError, match="2 snapshots"):
        siglip_folder(content)


@pytest.mark.parametrize("name", ["siglip-so400m-patch14-384", "google/siglip-so400m-patch14-384"])
def test_a_plain_folder_serves_too(name: str, content: Path, folder: Path) -> None:
    shutil.copytree(folder, content / name)
    shutil.rmtree(content / CACHE_NAME)
    assert siglip_folder(content) == content / name
    assert check_siglip(content / name) == 16


@pytest.mark.parametrize("left", ["nothing", "refs", "no snapshot"])
def test_a_cache_without_a_snapshot_is_refused(left: str, content: Path) -> None:
    shutil.rmtree(content / CACHE_NAME / "snapshots" if left != "nothing" else content / CACHE_NAME)
    if left == "no snapshot":
        (content / CACHE_NAME / "snapshots").mkdir()
    with pytest.raises(CheckpointError, match="has no SigLIP"):
        siglip_folder(content)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def damage(folder: Path, fault: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    stored = load_file(weights)
    match fault:
        case "no config":
            config.unlink()
        case "link to nowhere":
            config.unlink()
            config.symlink_to("../../blobs/0123")
        case "no JSON":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
        case "another model":
            change(config, model_type="clip")
        case "impossible config":
            vision = json.loads(config.read_text())["vision_config"]
            change(config, vision_config=vision | {"num_attention_heads": 3})
        case "another depth":
            vision = json.loads(config.read_text())["vision_config"]
            change(config, vision_config=vision | {"num_hidden_layers": 3})
        case "no weights":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "a tensor is missing":
            save_file({n: t for n, t in stored.items() if n != "vision_model.head.probe"}, weights)
        case "a tensor too many":
            save_file(stored | {"vision_model.encoder.layers.2.x": torch.zeros(1)}, weights)
        case "text only":
            save_file({n: t for n, t in stored.items() if n.startswith("text_model.")}, weights)
        case "no preparation":
            (folder / "preprocessor_config.json").unlink()
        case "another preparation":
            change(folder / "preprocessor_config.json", image_mean=[0.48, 0.46, 0.41])
        case "another size":
            change(folder / "preprocessor_config.json", size={"height": 224, "width": 224})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no config", "config.json is missing"),
        ("link to nowhere", "config.json is a link to a file that is not there"),
        ("no JSON", "cannot be read as JSON"),
        ("a list", "must hold a JSON object"),
        ("another model", "holds a clip model where a SigLIP is needed"),
        ("impossible config", "config.json describes no SigLIP"),
        ("another depth", "missing, first: encoder.layers.2"),
        ("no weights", "holds no checkpoint"),
        ("truncated", "truncated"),
        ("a tensor is missing", "1 of .* missing, first: head.probe"),
        ("a tensor too many", "another network, first: encoder.layers.2.x"),
        ("text only", "missing, first: embeddings.patch_embedding.weight"),
        ("no preparation", "preprocessor_config.json is missing"),
        ("another preparation", "says image_mean .*0.48"),
        ("another size", "says size .*224"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(fault: str, message: str, folder: Path) -> None:
    damage(folder, fault)
    with pytest.raises(CheckpointError, match=message):
        check_siglip(folder)
