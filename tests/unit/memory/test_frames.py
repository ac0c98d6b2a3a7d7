from dataclasses import replace

import pytest
import torch

from cosmos_nemo.catalog import TokenizerShape
from tests.unit.memory.cards import NANO, SMALL, VIDEO, alone, stage


def test_siglips_picture_half_has_the_parameters_of_transformers() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    with torch.device("meta"):
        model = SiglipVisionModel(config)
    parameters = sum(p.numel() for p in model.parameters())
    detector = stage(SMALL, "video_guard").weights / 4 - parameters
    assert 26e6 < detector < 28e6


def test_the_tokenizers_decoder_is_counted() -> None:
    from cosmos_nemo.models.video_tokenizer.model import build_autoencoder

    for card in (SMALL, NANO):
        decoder = build_autoencoder(
            card.tokenizer, device="meta", dtype=torch.float32, parts=("decoder",)
        ).parameters()
        counted = stage(card, "tokenizer").weights / 2
        assert counted == pytest.approx(sum(p.numel() for p in decoder), rel=0.2 if card is NANO else 1e-9)


def test_the_decode_measured_at_the_largest_size_is_predicted() -> None:
    assert alone(stage(SMALL, "tokenizer", height=1056, width=1920)) == pytest.approx(17.8, rel=0.02)


def test_an_odd_number_of_latent_frames_takes_more_at_large_sizes() -> None:
    # The spatial attention then has a group of three frames instead of two.
    even, odd = (
        stage(SMALL, "tokenizer", height=1056, width=1920, num_frames=frames) for frames in (121, 113)
    )
    assert odd.work > 1.3 * even.work


def test_the_tokenizers_channels_count() -> None:
    narrow = replace(SMALL, tokenizer=TokenizerShape(channels=64))
    assert stage(narrow, "tokenizer").weights * 4 == stage(SMALL, "tokenizer").weights
    assert stage(narrow, "tokenizer").work < stage(SMALL, "tokenizer").work


def test_what_starts_from_images_has_the_tokenizers_encoder_too() -> None:
    from cosmos_nemo.models.video_tokenizer.model import build_autoencoder

    whole = build_autoencoder(VIDEO.tokenizer, device="meta", dtype=torch.float32).parameters()
    assert stage(VIDEO, "tokenizer").weights == 2 * sum(p.numel() for p in whole)
    assert stage(VIDEO, "tokenizer").work == stage(SMALL, "tokenizer").work
