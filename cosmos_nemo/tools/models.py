"""`cosmos-nemo models`: the cards."""

import argparse

from cosmos_nemo.catalog import CARDS, Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> int:
    for card in CARDS.values():
        video = card.video
        print(card.name)
        network = card.tokens.network if card.tokens is not None else card.network
        print(f"  {card.task.value}; {network.num_layers} layers of width {network.hidden_size}")
        frames = f"{video.num_frames} frames of {video.width} x {video.height} at {video.fps} fps"
        if card.task is Task.TEXT2IMAGE:
            frames = f"an image of {video.width} x {video.height}"
        how = f"{card.sampler}, {card.num_steps} steps, guidance {card.guidance:g}"
        if card.tokens is not None and not card.has_diffusion_decoder:
            how = f"temperature {card.tokens.temperature:g}, top-p {card.tokens.top_p:g}"
        print(f"  {frames}; {how}")
        print(f"  {card.sources.weights}/{card.sources.weights_folder}".rstrip("/"))
    return 0
