import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint.discrete_tokenizer_names import match_names, tensor_shapes, upstream_name
from cosmos_nemo.tools.checks.ar_tokenizer import tokenizer_shape

GOLDEN = Path(__file__).parents[2] / "golden" / "predict1_ar_tokenizer_small.safetensors"
RELEASED = DiscreteTokenizerShape()
CONSTANTS = (
    "encoder.patcher3d.wavelets",
    "encoder.patcher3d._arange",
    "encoder.patcher3d.patch_size_buffer",
    "decoder.unpatcher3d.wavelets",
    "decoder.unpatcher3d._arange",
    "quantizer._levels",
    "quantizer._basis",
    "quantizer.implicit_codebook",
    "inv_quant.quantizer._levels",
    "inv_quant.quantizer.implicit_codebook",
)


@pytest.fixture(scope="module")
def upstream() -> dict[str, tuple[int, ...]]:
    """Names and shapes that NVIDIA's classes give a small tokenizer."""
    with safe_open(GOLDEN, "pt") as file:
        names = [name for name in file.keys() if name.startswith("weights.")]  # noqa: SIM118
        return {name.removeprefix("weights."): tuple(file.get_slice(name).get_shape()) for name in names}


@pytest.fixture(scope="module")
def small() -> DiscreteTokenizerShape:
    return tokenizer_shape(json.loads(GOLDEN.with_suffix(".json").read_text())["config"])


@pytest.mark.parametrize(
    "shape",
    [
        RELEASED,
        replace(RELEASED, channels=4, levels=(7, 3)),
        replace(RELEASED, channels=4, spatial_compression=8, num_res_blocks=1),
        replace(RELEASED, channels=4, patch_size=2, spatial_compression=8, temporal_compression=4),
        replace(
            RELEASED, channels=4, channel_multipliers=(2,), spatial_compression=4, temporal_compression=4
        ),
    ],
)
def test_the_tensors_are_those_of_the_network(shape: DiscreteTokenizerShape) -> None:
    from cosmos_nemo.models.discrete_tokenizer.model import build_autoencoder

    network = build_autoencoder(shape, device="meta", dtype=torch.float32)
    assert tensor_shapes(shape) == {name: tuple(p.shape) for name, p in network.named_parameters()}
    for part in ("encoder", "decoder"):
        network = build_autoencoder(shape, device="meta", dtype=torch.float32, parts=(part,))
        assert tensor_shapes(shape, parts=(part,)).keys() == dict(network.named_parameters()).keys()


def test_every_upstream_tensor_has_a_place(
    upstream: dict[str, tuple[int, ...]], small: DiscreteTokenizerShape
) -> None:
    match = match_names(small, upstream)
    assert match.complaint() is None
    assert {name: upstream[source] for name, source in match.sources.items()} == tensor_shapes(small)
    assert sorted(match.sources.values()) == sorted(upstream)
    assert {upstream_name(name, small) for name in match.sources} == set(upstream)


def test_what_tracing_captured_is_left_out(
    upstream: dict[str, tuple[int, ...]], small: DiscreteTokenizerShape
) -> None:
    assert match_names(small, [*upstream, *CONSTANTS]) == match_names(small, upstream)


def test_names_of_diffusers_are_taken_as_they_are(small: DiscreteTokenizerShape) -> None:
    names = tuple(tensor_shapes(small))
    assert match_names(small, names).sources == dict(zip(names, names, strict=True))


def test_the_names_of_tokenizer_training_are_those_below_network(
    upstream: dict[str, tuple[int, ...]], small: DiscreteTokenizerShape
) -> None:
    match = match_names(small, [f"network.{name}" for name in upstream])
    assert match.complaint() is None
    assert match.sources["quant_conv.bias"] == "network.quant_conv.conv3d.bias"


def test_averages_are_read_where_training_kept_them(
    upstream: dict[str, tuple[int, ...]], small: DiscreteTokenizerShape
) -> None:
    plain = [f"network.{name}" for name in upstream]
    averages = [f"ema.network-{name.replace('.', '-')}" for name in upstream]
    match = match_names(small, [*plain, *averages, "ema.num_updates"])
    assert match.complaint() is None
    assert sorted(match.sources.values()) == sorted(averages)


def test_half_of_the_averages_are_not_filled_up_with_other_weights(
    upstream: dict[str, tuple[int, ...]], small: DiscreteTokenizerShape
) -> None:
    plain = [f"network.{name}" for name in upstream]
    half = [f"ema.network-{name.replace('.', '-')}" for name in sorted(upstream)[::2]]
    complaint = match_names(small, [*plain, *half]).complaint()
    assert complaint is not None and f"of {len(upstream)} tensors missing" in complaint


def test_one_part_is_found_in_a_file_of_both_and_in_one_of_its_own(
    upstream: dict[str, tuple[int, ...]], small: DiscreteTokenizerShape
) -> None:
    alone = [name for name in upstream if name.startswith(("decoder.", "post_quant_conv."))]
    of_both = match_names(small, upstream, parts=("decoder",))
    assert of_both.complaint() is None
    assert of_both == match_names(small, alone, parts=("decoder",))
    complaint = match_names(small, alone).complaint()
    assert complaint is not None and "missing, first: encoder.conv_in" in complaint


def test_a_missing_and_a_foreign_tensor_are_named(
    upstream: dict[str, tuple[int, ...]], small: DiscreteTokenizerShape
) -> None:
    old, new = "quant_conv.conv3d.weight", "quant_cone.conv3d.weight"
    complaint = match_names(small, [new if name == old else name for name in upstream]).complaint()
    assert complaint == f"1 of {len(upstream)} tensors missing, first: {old}; the file has {new} instead"
    extra = "decoder.up.1.attn.0.q.conv3d.weight"
    assert match_names(small, [*upstream, extra]).complaint() == f"1 tensors too many, first: {extra}"


@pytest.mark.parametrize(
    "change",
    [
        {"spatial_compression": 12},
        {"spatial_compression": 2},
        {"spatial_compression": 32},
        {"temporal_compression": 16},
        {"temporal_compression": 2},
        {"spatial_compression": 4},
        {"channel_multipliers": (2, 4)},
        {"channel_multipliers": (2,)},
    ],
    ids=str,
)
def test_sizes_that_the_levels_do_not_make_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"spatial_compression .* cannot be, with patches of 4"):
        tensor_shapes(replace(RELEASED, **change))
