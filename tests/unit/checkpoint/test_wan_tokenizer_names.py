import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.wan_tokenizer_names import (
    PARTS,
    diffusers_names,
    match_names,
    released_names,
    tensor_shapes,
)
from cosmos_nemo.tools.checks.predict2_vae import tokenizer_shape

GOLDEN = Path(__file__).parents[2] / "golden" / "predict2_vae_a.safetensors"
RELEASED = WanTokenizerShape()
SHAPES = [
    RELEASED,
    replace(RELEASED, channels=6, latent_channels=8),
    replace(RELEASED, channels=4, num_res_blocks=1),
    replace(
        RELEASED,
        channels=4,
        channel_multipliers=(1, 3, 2),
        halves_time=(True, True),
        spatial_compression=4,
        num_res_blocks=3,
    ),
    replace(RELEASED, channels=8, halves_time=(True, False, False), temporal_compression=2),
]

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def upstream() -> Shapes:
    """Names and shapes that upstream's classes give a tokenizer of 4 channels."""
    with safe_open(GOLDEN, "pt") as file:
        names = [name for name in file.keys() if name.startswith("weights.")]  # noqa: SIM118
        return {name.removeprefix("weights."): tuple(file.get_slice(name).get_shape()) for name in names}


@pytest.fixture(scope="module")
def tiny() -> WanTokenizerShape:
    return tokenizer_shape(json.loads(GOLDEN.with_suffix(".json").read_text()))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tensors_are_those_of_diffusers_network(shape: WanTokenizerShape) -> None:
    from cosmos_nemo.models.wan_tokenizer.model import build_autoencoder

    network = build_autoencoder(shape, device="meta", dtype=torch.float32)
    assert tensor_shapes(shape) == {name: tuple(p.shape) for name, p in network.named_parameters()}


def test_the_released_tokenizer_has_as_many_parameters_as_published() -> None:
    assert sum(math.prod(shape) for shape in tensor_shapes(RELEASED).values()) == 126_892_531


def test_every_upstream_tensor_has_a_place(upstream: Shapes, tiny: WanTokenizerShape) -> None:
    sources, wrong = match_names(tiny, upstream)
    assert wrong == ""
    assert {name: upstream[source] for name, source in sources.items()} == tensor_shapes(tiny)
    assert set(sources.values()) == upstream.keys()


@pytest.mark.parametrize("parts", [PARTS, ("encoder",), ("decoder",)])
@pytest.mark.parametrize("shape", SHAPES)
def test_names_survive_the_way_there_and_back(shape: WanTokenizerShape, parts: tuple[str, ...]) -> None:
    there, back = released_names(shape, parts=parts), diffusers_names(shape, parts=parts)
    assert there.keys() == tensor_shapes(shape, parts=parts).keys()
    assert len(back) == len(there)
    assert {back[released]: released for released in there.values()} == there


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("quant_conv.weight", "conv1.weight"),
        ("post_quant_conv.bias", "conv2.bias"),
        ("encoder.conv_in.bias", "encoder.conv1.bias"),
        ("encoder.norm_out.gamma", "encoder.head.0.gamma"),
        ("decoder.conv_out.weight", "decoder.head.2.weight"),
        ("encoder.mid_block.resnets.1.norm2.gamma", "encoder.middle.2.residual.3.gamma"),
        ("decoder.mid_block.attentions.0.to_qkv.weight", "decoder.middle.1.to_qkv.weight"),
        ("decoder.mid_block.resnets.0.conv2.bias", "decoder.middle.0.residual.6.bias"),
        ("encoder.down_blocks.3.conv_shortcut.weight", "encoder.downsamples.3.shortcut.weight"),
        ("encoder.down_blocks.5.time_conv.weight", "encoder.downsamples.5.time_conv.weight"),
        ("encoder.down_blocks.10.conv1.weight", "encoder.downsamples.10.residual.2.weight"),
        ("decoder.up_blocks.0.upsamplers.0.time_conv.bias", "decoder.upsamples.3.time_conv.bias"),
        ("decoder.up_blocks.1.resnets.0.norm1.gamma", "decoder.upsamples.4.residual.0.gamma"),
        ("decoder.up_blocks.2.upsamplers.0.resample.1.weight", "decoder.upsamples.11.resample.1.weight"),
        ("decoder.up_blocks.3.resnets.2.conv2.weight", "decoder.upsamples.14.residual.6.weight"),
    ],
)
def test_a_name_is_what_the_specification_says(ours: str, theirs: str) -> None:
    assert released_names(RELEASED)[ours] == theirs
    assert diffusers_names(RELEASED)[theirs] == ours


@pytest.mark.parametrize("parts", [PARTS, ("encoder",), ("decoder",)])
def test_names_of_diffusers_are_taken_as_they_are(tiny: WanTokenizerShape, parts: tuple[str, ...]) -> None:
    sources, wrong = match_names(tiny, tensor_shapes(tiny), parts=parts)
    assert wrong == ""
    assert sources == {name: name for name in tensor_shapes(tiny, parts=parts)}


@pytest.mark.parametrize(
    ("part", "prefixes"), [("encoder", ("encoder.", "conv1.")), ("decoder", ("decoder.", "conv2."))]
)
def test_one_part_is_found_in_a_file_of_both_and_in_one_of_its_own(
    part: str, prefixes: tuple[str, ...], upstream: Shapes, tiny: WanTokenizerShape
) -> None:
    alone = {name: shape for name, shape in upstream.items() if name.startswith(prefixes)}
    of_both = match_names(tiny, upstream, parts=(part,))
    assert of_both == match_names(tiny, alone, parts=(part,))
    assert of_both[1] == ""
    assert set(of_both[0].values()) == alone.keys()


def test_the_other_part_is_missed_where_it_is_wanted(upstream: Shapes, tiny: WanTokenizerShape) -> None:
    alone = {name: shape for name, shape in upstream.items() if name.startswith(("decoder.", "conv2."))}
    _, wrong = match_names(tiny, alone)
    assert "86 of 194 tensors missing, first: encoder.conv1.weight" in wrong


def test_a_renamed_tensor_is_named_with_the_nearest_of_the_file(
    upstream: Shapes, tiny: WanTokenizerShape
) -> None:
    stored = dict(upstream)
    stored["decoder.upsamples.3.time_convs.weight"] = stored.pop("decoder.upsamples.3.time_conv.weight")
    _, wrong = match_names(tiny, stored)
    assert wrong == (
        "1 of 194 tensors missing, first: decoder.upsamples.3.time_conv.weight "
        "(nearest in the file: decoder.upsamples.3.time_convs.weight)"
    )


def test_a_tensor_too_many_is_named(upstream: Shapes, tiny: WanTokenizerShape) -> None:
    _, wrong = match_names(tiny, upstream | {"decoder.upsamples.15.residual.0.gamma": (4, 1, 1, 1)})
    assert "belong to another network, first: decoder.upsamples.15.residual.0.gamma" in wrong


def test_a_tensor_of_another_shape_is_named(upstream: Shapes, tiny: WanTokenizerShape) -> None:
    _, wrong = match_names(replace(tiny, latent_channels=5), upstream)
    assert (
        "of another shape, first: encoder.head.2.weight is (8, 16, 3, 3, 3), not (10, 16, 3, 3, 3)" in wrong
    )


def test_a_file_of_something_else_is_refused(tiny: WanTokenizerShape) -> None:
    _, wrong = match_names(tiny, {"blocks.0.mlp.layer1.weight": (4, 4)})
    assert "194 of 194 tensors missing" in wrong


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"halves_time": (True, True)}, "contradict each other: there is a halving between levels, 3 in all"),
        ({"channel_multipliers": (1, 2)}, "contradict each other"),
        ({"spatial_compression": 16}, "its levels make them 8 and 4"),
        ({"temporal_compression": 8}, "its levels make them 8 and 4"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(change: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        tensor_shapes(replace(RELEASED, **change))  # type: ignore[arg-type]
