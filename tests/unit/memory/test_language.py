import json
import struct
from math import prod

import pytest
import torch

from cosmos_nemo.catalog import find_card
from cosmos_nemo.checkpoint.locate import EMBEDDED
from tests.unit.memory.cards import NANO, SMALL, VIDEO, stage


def test_t5_11b_has_the_parameters_of_transformers() -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128, vocab_size=32128)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    assert stage(SMALL, "text_encoder").weights == 2 * sum(p.numel() for p in model.parameters())


def test_llama_guard_has_the_parameters_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert stage(SMALL, "text_guard").weights == 2 * sum(p.numel() for p in model.parameters())


def test_the_embedded_text_encoder_is_counted() -> None:
    with (EMBEDDED / "Cosmos-Nano-T5/model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    count = sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    assert stage(NANO, "text_encoder").weights == 2 * count


def test_a_float32_text_encoder_takes_twice_the_memory() -> None:
    half, whole = stage(SMALL, "text_encoder"), stage(SMALL, "text_encoder", text_encoder_itemsize=4)
    assert (whole.weights, whole.work) == (2 * half.weights, 2 * half.work)


def test_pixtral_keeps_the_keys_and_values_of_all_tokens_that_it_may_read_and_write() -> None:
    upsampler = stage(VIDEO, "upsampler")
    assert upsampler.weights == pytest.approx(2 * 12.68e9, rel=1e-3)
    keys_and_values = 4700 * 40 * 2 * 8 * 128 * 2
    assert 0.1e9 < upsampler.work - keys_and_values < 0.4e9
    assert stage(NANO, "upsampler", upsamples=True).work < upsampler.work
    assert stage(find_card("Cosmos-Nano-Video2World"), "upsampler") == upsampler
