"""Opening a diffusion network's checkpoint."""

from pathlib import Path

from cosmos_nemo.checkpoint.lora import merge_lora
from cosmos_nemo.checkpoint.reader import Checkpoint, open_checkpoint


def open_network(path: Path) -> Checkpoint:
    """As open_checkpoint, with low-rank post-training merged into the weights that it changes."""
    return merge_lora(open_checkpoint(path))
