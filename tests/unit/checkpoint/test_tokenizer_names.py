import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.tokenizer_names import diffusers_name, match_names, tensor_shapes, upstream_name

GOLDEN = Path(__file__).parents[2] / "golden" / "predict1_tokenizer_tiny.safetensors"
RELEASED = TokenizerShape()


@pytest.fixture(scope="module")
def upstream() -> dict[str, tuple[int, ...]]:
    """Names and shapes that NVIDIA's classes give a tokenizer of 6 channels, constants included."""
    with safe_open(GOLDEN, "pt") as file:
        names = [name for name in file.keys() if name.startswith("weights.")]  # noqa: SIM118
        return {name.removeprefix("weights."): tuple(file.get_slice(name).get_shape()) for name in names}


@pytest.fixture(scope="module")
def tiny() -> TokenizerShape:
    config = json.loads(GOLDEN.with_suffix(".json").read_text())["config"]
    return TokenizerShape(channels=config["channels"], channel_multipliers=tuple(config["channels_mult"]))


SHAPES = [
    RELEASED,
    replace(RELEASED, channels=6),
    replace(RELEASED, channels=4, patch_size=2),
    replace(RELEASED, channels=4, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8),
    replace(RELEASED, channels=4, spatial_compression=16),
    replace(RELEASED, channels=4, patch_size=2, temporal_compression=4, channel_multipliers=(1, 3, 2, 4)),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tensors_are_those_of_diffusers_network(shape: TokenizerShape) -> None:
    from cosmos_nemo.models.video_tokenizer.model import build_autoencoder

    network = build_autoencoder(shape, device="meta", dtype=torch.float32)
    assert tensor_shapes(shape) == {name: tuple(p.shape) for name, p in network.named_parameters()}


def test_the_released_tokenizer_has_as_many_parameters_as_the_specification_says() -> None:
    assert sum(math.prod(shape) for shape in tensor_shapes(RELEASED).values()) == 105_653_696


def test_every_upstream_tensor_but_the_constants_has_a_place(
    upstream: dict[str, tuple[int, ...]], tiny: TokenizerShape
) -> None:
    match = match_names(tiny, upstream)
    shapes = tensor_shapes(tiny)
    assert match.complaint() is None
    assert {name: upstream[source] for name, source in match.sources.items()} == shapes
    assert len(set(match.sources.values())) == len(shapes) == len(upstream) - 5


@pytest.mark.parametrize("shape", SHAPES)
def test_names_survive_the_way_there_and_back(shape: TokenizerShape) -> None:
    for name in tensor_shapes(shape):
        assert diffusers_name(upstream_name(name, shape), shape) == name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("decoder.up_blocks.0.resnets.2.conv1.conv_t.bias", "decoder.up.2.block.2.conv1.1.conv3d.bias"),
        ("decoder.up_blocks.1.upsamplers.0.conv2.weight", "decoder.up.1.upsample.conv2.conv3d.weight"),
        ("encoder.down_blocks.0.downsamplers.0.conv3.bias", "encoder.down.0.downsample.conv3.conv3d.bias"),
        (
            "encoder.mid_block.temp_attentions.0.to_out.0.weight",
            "encoder.mid.attn_1.1.proj_out.conv3d.weight",
        ),
        ("encoder.mid_block.attentions.0.norm.norm.bias", "encoder.mid.attn_1.0.norm.norm.bias"),
        ("decoder.mid_block.resnets.1.norm2.norm.weight", "decoder.mid.block_2.norm2.norm.weight"),
        ("decoder.up_blocks.2.resnets.0.conv_shortcut.bias", "decoder.up.0.block.0.nin_shortcut.conv3d.bias"),
        ("post_quant_conv.weight", "post_quant_conv.conv3d.weight"),
        ("quant_conv.bias", "quant_conv.conv3d.bias"),
    ],
)
def test_a_name_is_what_the_specification_says(ours: str, theirs: str) -> None:
    assert upstream_name(ours, RELEASED) == theirs
    assert diffusers_name(theirs, RELEASED) == ours


def test_names_of_diffusers_are_taken_as_they_are(tiny: TokenizerShape) -> None:
    names = tuple(tensor_shapes(tiny))
    match = match_names(tiny, names)
    assert match.complaint() is None
    assert match.sources == dict(zip(names, names, strict=True))


def test_one_part_is_found_in_a_file_of_both_and_in_one_of_its_own(
    upstream: dict[str, tuple[int, ...]], tiny: TokenizerShape
) -> None:
    prefixes = ("decoder.", "post_quant_conv.")
    alone = [name for name in upstream if name.startswith(prefixes)]
    of_both = match_names(tiny, upstream, parts=("decoder",))
    assert of_both.complaint() is None
    assert of_both == match_names(tiny, alone, parts=("decoder",))
    assert of_both.sources.keys() == tensor_shapes(tiny, parts=("decoder",)).keys()


def test_the_other_part_is_missed_where_it_is_wanted(
    upstream: dict[str, tuple[int, ...]], tiny: TokenizerShape
) -> None:
    alone = [name for name in upstream if name.startswith(("decoder.", "post_quant_conv."))]
    complaint = match_names(tiny, alone).complaint()
    assert complaint is not None and " of 310 tensors missing, first: encoder.conv_in" in complaint


def test_a_renamed_tensor_is_named_with_what_the_file_has_instead(
    upstream: dict[str, tuple[int, ...]], tiny: TokenizerShape
) -> None:
    old, new = "decoder.conv_in.0.conv3d.weight", "decoder.conv_inn.0.conv3d.weight"
    match = match_names(tiny, [new if name == old else name for name in upstream])
    assert (match.missing, match.unexpected) == ((old,), (new,))
    assert match.complaint() == f"1 of 310 tensors missing, first: {old}; the file has {new} instead"


def test_a_tensor_too_many_is_named(upstream: dict[str, tuple[int, ...]], tiny: TokenizerShape) -> None:
    extra = "decoder.up.1.attn.0.q.conv3d.weight"
    assert match_names(tiny, [*upstream, extra]).complaint() == f"1 tensors too many, first: {extra}"
