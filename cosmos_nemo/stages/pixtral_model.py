"""transformers' Pixtral, filled in place on its device."""

from typing import Any

import torch
from torch import nn

from cosmos_nemo.catalog import LanguageShape, VisionShape
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.pixtral_names import pixtral_rules
from cosmos_nemo.checkpoint.reader import Checkpoint
from cosmos_nemo.stages.language_model import empty_on_device, mistral_config

_LAST_LAYER = -1


def build_pixtral(
    shape: LanguageShape,
    vision: VisionShape,
    *,
    checkpoint: Checkpoint,
    image_token: int,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """A LlavaForConditionalGeneration of those shapes, filled tensor by tensor.

    A patch of the image goes where `image_token` stands. CheckpointError as pixtral_names.pixtral_rules',
    before any memory is taken.
    """
    from transformers import LlavaForConditionalGeneration

    rules = pixtral_rules(shape, vision, checkpoint)
    config = pixtral_config(shape, vision, image_token=image_token)
    model = empty_on_device(lambda: LlavaForConditionalGeneration(config), device=device, dtype=dtype)
    load_into(model, checkpoint=checkpoint, rules=rules)
    return model


def pixtral_config(shape: LanguageShape, vision: VisionShape, *, image_token: int) -> Any:
    """transformers' LlavaConfig with those sizes, and what Pixtral has that is no size."""
    from transformers import LlavaConfig, PixtralVisionConfig

    tower = PixtralVisionConfig(
        num_hidden_layers=vision.num_layers,
        hidden_size=vision.hidden_size,
        num_attention_heads=vision.num_heads,
        intermediate_size=vision.ffn_hidden_size,
        patch_size=vision.patch_size,
        image_size=vision.max_image_size,
        rope_theta=vision.rope_theta,
        # Not the class's default: the released tower gates with SiLU.
        hidden_act="silu",
        attn_implementation="sdpa",
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=mistral_config(shape),
        image_token_index=image_token,
        projector_hidden_act="gelu",
        vision_feature_layer=_LAST_LAYER,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=True,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
