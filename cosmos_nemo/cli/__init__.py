"""Flags of the doors -> Setup and requests. Published flags keep their names; standard library only."""

from cosmos_nemo.cli.general import parse_general
from cosmos_nemo.cli.invocation import Invocation
from cosmos_nemo.cli.text2world import parse_text2world

__all__ = ["Invocation", "parse_general", "parse_text2world"]
