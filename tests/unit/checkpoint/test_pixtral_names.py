from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmos_nemo.catalog import LanguageShape, VisionShape
from cosmos_nemo.checkpoint.language_names import native_rules
from cosmos_nemo.checkpoint.pixtral_names import LAYOUTS, layout_rules, pixtral_rules, pixtral_shapes
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor, open_checkpoint
from cosmos_nemo.checkpoint.rules import Same
from cosmos_nemo.checkpoint.writer.pixtral import pixtral_tensors

SHAPE = LanguageShape(
    num_layers=2,
    hidden_size=20,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=24,
    vocab_size=40,
    rope_theta=1e9,
)
VISION = VisionShape(
    num_layers=2, hidden_size=16, num_heads=2, ffn_hidden_size=28, patch_size=4, max_image_size=32
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Under our names."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(size, generator=draw) for name, size in pixtral_shapes(SHAPE, VISION).items()}


@pytest.fixture(scope="module")
def mistral(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return pixtral_tensors(weights, shape=SHAPE, vision=VISION, layout="mistral")


def held(tensors: dict[str, Tensor]) -> Checkpoint:
    lazy = {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}
    return Checkpoint(Path("consolidated.safetensors"), layout="safetensors", tensors=lazy)


def read(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: rule.read(checkpoint) for name, rule in pixtral_rules(SHAPE, VISION, checkpoint).items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_our_names_and_shapes_are_those_of_transformers() -> None:
    from transformers import LlavaForConditionalGeneration

    from cosmos_nemo.stages.pixtral_model import pixtral_config

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(pixtral_config(SHAPE, VISION, image_token=5))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == pixtral_shapes(SHAPE, VISION)


def stored_shapes(layout: str) -> dict[str, tuple[int, ...]]:
    rules = layout_rules(LAYOUTS[layout], SHAPE, VISION)
    return {rule.names[0]: rule.stored_shape() for rule in rules.values()}


def test_mistrals_names_and_shapes_are_those_of_the_released_file() -> None:
    language = {rule.names[0]: rule.stored_shape() for rule in native_rules(SHAPE).values()}
    tower_layer = {
        **{f"attention.w{each}.weight": (16, 16) for each in "qkvo"},
        "feed_forward.w1.weight": (28, 16),
        "feed_forward.w2.weight": (16, 28),
        "feed_forward.w3.weight": (28, 16),
        "attention_norm.weight": (16,),
        "ffn_norm.weight": (16,),
    }
    tower = {
        "patch_conv.weight": (16, 3, 4, 4),
        "ln_pre.weight": (16,),
        **{f"transformer.layers.{i}.{name}": size for i in (0, 1) for name, size in tower_layer.items()},
    }
    assert stored_shapes("mistral") == {
        **language,
        **{f"vision_encoder.{name}": size for name, size in tower.items()},
        "vision_language_adapter.w_in.weight": (20, 16),
        "vision_language_adapter.w_in.bias": (20,),
        "vision_language_adapter.w_out.weight": (20, 20),
        "vision_language_adapter.w_out.bias": (20,),
    }
    # Gate and up have one shape: which is which, only their names tell.
    rules = layout_rules(LAYOUTS["mistral"], SHAPE, VISION)
    gate = rules["model.vision_tower.transformer.layers.1.feed_forward.gate_proj.weight"]
    assert gate.names == ("vision_encoder.transformer.layers.1.feed_forward.w1.weight",)


def test_the_predict1_scripts_rename_the_adapter_and_put_the_language_model_below_model() -> None:
    adapter = {"w_in": "projector.0", "w_out": "projector.2"}
    expected = {}
    for name, size in stored_shapes("mistral").items():
        first, _, rest = name.partition(".")
        if first == "vision_language_adapter":
            linear, kind = rest.split(".")
            expected[f"mm_projector.{adapter[linear]}.{kind}"] = size
        else:
            expected[name if first == "vision_encoder" else f"model.{name}"] = size
    assert stored_shapes("predict1") == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_back_as_it_was_to_the_bit(
    layout: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(
        pixtral_tensors(weights, shape=SHAPE, vision=VISION, layout=layout), tmp_path / "it.safetensors"
    )
    assert_equal(read(open_checkpoint(tmp_path)), weights)


def test_what_this_transformers_saves_is_read(weights: dict[str, Tensor], tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    from cosmos_nemo.stages.pixtral_model import pixtral_config

    model = LlavaForConditionalGeneration(pixtral_config(SHAPE, VISION, image_token=5))
    model.load_state_dict(weights)
    model.save_pretrained(tmp_path)
    assert_equal(read(open_checkpoint(tmp_path)), weights)


@pytest.mark.parametrize("layout", ["predict1", "mistral"])
def test_only_queries_and_keys_change_their_order(layout: str, weights: dict[str, Tensor]) -> None:
    named = pixtral_tensors(weights, shape=SHAPE, vision=VISION, layout=layout)
    rules = layout_rules(LAYOUTS[layout], SHAPE, VISION)
    changed = {ours for ours, rule in rules.items() if not torch.equal(weights[ours], named[rule.names[0]])}
    assert changed == {
        f"model.{block}.{i}.{attention}.{x}_proj.weight"
        for block, attention in (
            ("language_model.layers", "self_attn"),
            ("vision_tower.transformer.layers", "attention"),
        )
        for i in (0, 1)
        for x in "qk"
    }


def test_the_names_of_transformers_are_read_as_they_are(weights: dict[str, Tensor]) -> None:
    for layout in ("transformers", "transformers-new"):
        assert {type(rule) for rule in layout_rules(LAYOUTS[layout], SHAPE, VISION).values()} == {Same}
    assert_equal(weights, read(held(weights)))


def test_tables_and_states_of_other_software_are_left_unread(
    weights: dict[str, Tensor], mistral: dict[str, Tensor]
) -> None:
    others = {
        "layers.0.attention._extra_state": torch.zeros(3),
        "vision_encoder.patch_positional_embedding.inv_freq": torch.zeros(3),
    }
    assert_equal(read(held(mistral | others)), weights)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("layers.1.attention.wv.weight", "layers.1.attention.vw.weight"),
        ("vision_encoder.ln_pre.weight", "vision_encoder.pre_ln.weight"),
        ("vision_language_adapter.w_out.bias", "vision_language_adapter.w_out.bais"),
        ("output.weight", "outputs.weight"),
    ],
)
def test_a_missing_tensor_is_named_with_the_nearest_in_the_file(
    name: str, other: str, mistral: dict[str, Tensor]
) -> None:
    tensors = dict(mistral)
    tensors[other] = tensors.pop(name)
    with pytest.raises(CheckpointError) as caught:
        read(held(tensors))
    assert f"1 of 45 tensors missing, first: {name} (nearest in the file: {other})" in str(caught.value)


def test_an_unexpected_tensor_is_named(mistral: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"1 of 46 .* first: vision_encoder\.cls"):
        read(held(mistral | {"vision_encoder.cls": torch.zeros(16)}))


def test_a_tensor_of_another_shape_is_named_with_both(mistral: dict[str, Tensor]) -> None:
    tensors = mistral | {"vision_encoder.patch_conv.weight": torch.zeros(16, 4, 4, 4)}
    with pytest.raises(CheckpointError, match=r"patch_conv\.weight is \(16, 4, 4, 4\), not \(16, 3, 4, 4\)"):
        read(held(tensors))


@pytest.mark.parametrize(
    ("shape", "vision"),
    [(replace(SHAPE, num_layers=3), VISION), (SHAPE, replace(VISION, num_layers=3))],
)
def test_a_model_of_another_depth_is_refused(
    shape: LanguageShape, vision: VisionShape, mistral: dict[str, Tensor]
) -> None:
    with pytest.raises(CheckpointError, match=r"9 of 54 tensors missing.* with a vision tower of \d of 16\?"):
        pixtral_rules(shape, vision, held(mistral))


def test_a_language_model_without_a_tower_is_refused_with_some_of_its_names(
    mistral: dict[str, Tensor],
) -> None:
    language = {name: tensor for name, tensor in mistral.items() if not name.startswith("vision")}
    with pytest.raises(CheckpointError, match=r"no Pixtral: none of its 21 tensors .* layers\.0\.attention"):
        read(held(language))
    with pytest.raises(CheckpointError, match="none at all"):
        read(held({}))
