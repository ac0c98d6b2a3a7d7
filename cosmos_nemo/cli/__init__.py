"""Flags of the doors -> Setup and requests. Published flags keep their names; standard library only."""

from cosmos_nemo.cli.autoregressive import parse_autoregressive
from cosmos_nemo.cli.general import parse_general
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.text2image import parse_text2image
from cosmos_nemo.cli.text2world import parse_text2world
from cosmos_nemo.cli.video2world import parse_video2world
from cosmos_nemo.cli.world_interpolator import parse_world_interpolator

__all__ = [
    "Invocation",
    "parse_autoregressive",
    "parse_general",
    "parse_text2image",
    "parse_text2world",
    "parse_video2world",
    "parse_world_interpolator",
]
