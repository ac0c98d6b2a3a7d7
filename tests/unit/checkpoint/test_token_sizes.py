from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import TokenShape
from cosmos_nemo.checkpoint.reader import Checkpoint, LazyTensor
from cosmos_nemo.checkpoint.token_formats import Stored, TokenFormat, expected_tensors, token_rules_for
from cosmos_nemo.checkpoint.token_sizes import (
    KNOWN_SHAPES,
    TOKEN_SIZES,
    describe,
    infer_token_shape,
    nearest_known,
)

FORMATS = [Stored(TokenFormat.RELEASED, "model."), Stored(TokenFormat.NEMO, "module.")]
NANO = TokenShape(
    num_layers=3,
    hidden_size=96,
    num_heads=6,
    num_kv_heads=3,
    head_dim=20,
    ffn_hidden_size=200,
    vocab_size=1000,
    text_dim=0,
)


def file_of(shape: TokenShape, stored: Stored, *, without: str = "\0") -> Checkpoint:
    """Names and shapes; no tensor can be read."""

    def refuse(index: tuple[slice, ...]) -> Tensor:
        raise AssertionError("read")

    shapes = expected_tensors(token_rules_for(shape, stored))
    lazy = {
        name: LazyTensor(size, torch.bfloat16, refuse) for name, size in shapes.items() if without not in name
    }
    return Checkpoint(Path("model.pt"), layout="torch", tensors=lazy)


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_a_released_model_is_known_by_its_tensors_with_what_they_do_not_tell(
    name: str, stored: Stored
) -> None:
    assert infer_token_shape(file_of(KNOWN_SHAPES[name], stored)) == KNOWN_SHAPES[name]
    assert KNOWN_SHAPES[name].rope_scale == (2.0 if name in ("12B", "13B") else 1.0)


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("shape", [NANO, replace(NANO, text_dim=48)])
def test_other_sizes_are_told_by_the_tensors(shape: TokenShape, stored: Stored) -> None:
    found = infer_token_shape(file_of(shape, stored))
    assert found is not None
    assert all(getattr(found, name) == getattr(shape, name) for name in TOKEN_SIZES)
    assert found.latent_THW == (5, 40, 64)


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("name", ["q_", "norm.weight", "output"])
def test_a_file_without_what_tells_a_size_tells_nothing(name: str, stored: Stored) -> None:
    absent = {"norm.weight": "final_layernorm", "q_": "self_attention.q_layernorm", "output": "output_layer"}[
        name
    ]
    if stored.format_ is TokenFormat.RELEASED:
        absent = {"norm.weight": "model.norm", "q_": "0.attention.q_norm", "output": "output"}[name]
    assert infer_token_shape(file_of(NANO, stored, without=absent)) is None


def test_the_nearest_model_attends_to_text_if_this_one_does() -> None:
    large = replace(KNOWN_SHAPES["12B"], num_layers=36)
    assert nearest_known(large)[0] == "12B"
    assert nearest_known(replace(large, text_dim=512))[0] == "13B"
    assert nearest_known(NANO)[0] == "4B"
    assert nearest_known(replace(NANO, text_dim=8))[0] == "5B"


def test_a_model_is_described_by_its_name_or_its_sizes() -> None:
    assert describe(KNOWN_SHAPES["12B"]) == "the 12B (40 layers, width 5120)"
    assert describe(NANO) == "a network of 3 layers, width 96, 6 and 3 heads of 20, 1000 tokens"
