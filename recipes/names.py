"""What a card's recipe is called."""

from cosmos_nemo.catalog import ModelCard

_FIRST_RELEASE = "cosmos_1.0_"
"""NVIDIA's own recipes left the version out: cosmos_diffusion_7b_text2world."""


def factory_name(card: ModelCard) -> str:
    """`cosmos_predict2_2b_video2world` of Cosmos-Predict2-2B-Video2World; a Python name."""
    return card.name.lower().replace("-", "_").replace(_FIRST_RELEASE, "cosmos_")
