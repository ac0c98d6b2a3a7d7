from dataclasses import replace
from math import prod

import pytest
import torch

from cosmos_nemo.catalog import CARDS, DiTShape, LanguageShape, VisionShape
from cosmos_nemo.checkpoint.load import split_axis
from cosmos_nemo.checkpoint.names import parameter_shapes
from cosmos_nemo.checkpoint.pixtral_names import pixtral_shapes
from cosmos_nemo.memory import language_parameters, network_parameters, token_parameters, vision_parameters
from tests.unit.memory.cards import LARGE, NANO, SMALL, VIDEO


@pytest.mark.parametrize(
    "shape",
    [
        *(CARDS[name].network for name in (SMALL.name, LARGE.name, NANO.name)),
        *(CARDS[f"Cosmos-Predict2-{size}-Video2World"].network for size in ("2B", "14B")),
        replace(SMALL.network, takes_given_mask=True, adaln_lora_dim=17, text_dim=5, latent_channels=3),
        DiTShape(num_layers=3, hidden_size=12, num_heads=2, ffn_hidden_size=20, patch_size=4),
    ],
    ids=lambda shape: f"{shape.num_layers}x{shape.hidden_size}",
)
def test_a_networks_parameters_are_those_of_its_tensors(shape: DiTShape) -> None:
    sizes = parameter_shapes(shape)
    assert network_parameters(shape) == sum(map(prod, sizes.values()))
    assert network_parameters(shape, tensor_parallel=2) == sum(
        prod(size) // (2 if split_axis(name) is not None else 1) for name, size in sizes.items()
    )


@pytest.mark.parametrize(
    "shape",
    [
        LanguageShape(),
        LanguageShape(
            num_layers=3,
            hidden_size=24,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            ffn_hidden_size=40,
            vocab_size=50,
        ),
    ],
)
def test_a_language_models_parameters_are_those_of_transformers(shape: LanguageShape) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn_hidden_size,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    assert language_parameters(shape) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("language", "vision"),
    [
        (VIDEO.upsampler, VIDEO.vision),
        (
            LanguageShape(num_layers=1, hidden_size=24, num_heads=4, num_kv_heads=2, head_dim=8),
            VisionShape(num_layers=3, hidden_size=20, num_heads=2, ffn_hidden_size=36, patch_size=4),
        ),
    ],
)
def test_an_upsampler_that_sees_has_the_parameters_of_its_tensors(
    language: LanguageShape, vision: VisionShape
) -> None:
    counted = language_parameters(language) + vision_parameters(vision, language.hidden_size)
    assert counted == sum(map(prod, pixtral_shapes(language, vision).values()))


@pytest.mark.parametrize("name", ["Cosmos-Predict1-4B", "Cosmos-Predict1-12B"])
def test_a_token_transformer_has_the_parameters_of_its_tensors(name: str) -> None:
    from cosmos_nemo.checkpoint.token_formats import token_parameter_shapes

    tokens = CARDS[name].tokens
    assert tokens is not None
    for shape in (tokens.network, replace(tokens.network, text_dim=1024)):
        assert token_parameters(shape) == sum(map(prod, token_parameter_shapes(shape).values()))
    assert 7 < token_parameters(tokens.network) / token_parameters(tokens.network, tensor_parallel=8) < 8
