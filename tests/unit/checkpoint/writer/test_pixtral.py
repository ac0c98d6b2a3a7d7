import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape, VisionShape
from cosmos_nemo.checkpoint.pixtral_names import pixtral_rules, pixtral_shapes
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.checkpoint.writer.pixtral import MARKS, Layout, pixtral_tensors, write_pixtral_folder

SHAPE = LanguageShape(
    num_layers=1, hidden_size=6, num_heads=2, num_kv_heads=1, head_dim=4, ffn_hidden_size=8, vocab_size=13
)
VISION = VisionShape(
    num_layers=1, hidden_size=8, num_heads=2, ffn_hidden_size=10, patch_size=2, max_image_size=8
)
VOCABULARY = [*((mark, 0.0) for mark in MARKS), *((piece, -1.0) for piece in ("▁", "a", "▁a", "b"))]
LAYOUTS: tuple[Layout, ...] = ("predict1", "mistral", "transformers")


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Views of one storage, which a file must not hold whole with each of them."""
    big = torch.randn(50_000)
    views, start = {}, 0
    for name, size in pixtral_shapes(SHAPE, VISION).items():
        count = torch.Size(size).numel()
        views[name] = big[start : start + count].view(size)
        start += count
    return views


def write(folder: Path, weights: dict[str, Tensor], layout: Layout) -> None:
    write_pixtral_folder(
        folder, shape=SHAPE, vision=VISION, vocabulary=VOCABULARY, weights=weights, layout=layout
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_reads_back(layout: Layout, weights: dict[str, Tensor], tmp_path: Path) -> None:
    write(tmp_path / "new", weights, layout)
    checkpoint = open_checkpoint(tmp_path / "new")
    for name, rule in pixtral_rules(SHAPE, VISION, checkpoint).items():
        assert torch.equal(rule.read(checkpoint), weights[name]), name
    assert sum(file.stat().st_size for file in (tmp_path / "new").iterdir()) < 50_000


def test_each_layout_has_the_files_of_the_released_one(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for layout in LAYOUTS:
        write(tmp_path / layout, weights, layout)
    files = {layout: {file.name for file in (tmp_path / layout).iterdir()} for layout in LAYOUTS}
    assert files == {
        "predict1": {"model.pt", "config.json", "tokenizer.json"},
        "mistral": {"consolidated.safetensors", "params.json", "tokenizer.json"},
        "transformers": {
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "tokenizer.json",
        },
    }


def test_the_predict1_file_holds_the_model_and_its_parts_once_more(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    write(tmp_path, weights, "predict1")
    content = torch.load(tmp_path / "model.pt")
    assert content.keys() == {"model", "mm_projector", "vision_encoder"}
    assert content["mm_projector"].keys() == {
        f"projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")
    }
    assert "transformer.layers.0.attention.wq.weight" in content["vision_encoder"]
    assert {name.partition(".")[0] for name in content["model"]} == {
        "model",
        "mm_projector",
        "vision_encoder",
    }
    for part in ("mm_projector", "vision_encoder"):
        for name, tensor in content[part].items():
            assert torch.equal(content["model"][f"{part}.{name}"], tensor)


def test_the_sizes_are_in_the_words_of_each_layout(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for layout in LAYOUTS:
        write(tmp_path / layout, weights, layout)
    predict1 = json.loads((tmp_path / "predict1" / "config.json").read_text())
    params = json.loads((tmp_path / "mistral" / "params.json").read_text())
    assert predict1["ffn_hidden_size"] == params["hidden_dim"] == 8 and "hidden_dim" not in predict1
    assert predict1["vision_encoder"] == "pixtral-12b-vit"
    assert params["vision_encoder"]["intermediate_size"] == 10


def test_transformers_itself_reads_its_layout(weights: dict[str, Tensor], tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    write(tmp_path, weights, "transformers")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert model.config.vision_config.hidden_act == "silu"
    assert model.config.image_token_id == MARKS.index("[IMG]")


def test_the_tensors_are_contiguous(weights: dict[str, Tensor]) -> None:
    for layout in LAYOUTS:
        named = pixtral_tensors(weights, shape=SHAPE, vision=VISION, layout=layout)
        assert all(tensor.is_contiguous() for tensor in named.values())


def test_the_tokenizer_finds_the_marks_and_makes_text_of_tokens(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    write(tmp_path, weights, "predict1")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "<s>[INST][IMG][IMG_BREAK][IMG][IMG_END]\na ab[/INST]"
    assert tokenizer.encode(text, add_special_tokens=False).ids == [1, 3, 5, 6, 5, 7, 10, 10, 11, 4]
    assert tokenizer.decode([10, 10, 11, 2], skip_special_tokens=True) == "a ab"
    assert tokenizer.encode("a ☃").ids[-1] == MARKS.index("<unk>")


def test_a_vocabulary_larger_than_the_models_or_without_marks_is_refused(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    for vocabulary, complaint in (
        ([*VOCABULARY, ("c", -1.0), ("d", -1.0)], "14 pieces for 13 tokens"),
        (VOCABULARY[1:], "begins with the marks"),
    ):
        with pytest.raises(AssertionError, match=complaint):
            write_pixtral_folder(
                tmp_path,
                shape=SHAPE,
                vision=VISION,
                vocabulary=vocabulary,
                weights=weights,
                layout="mistral",
            )
