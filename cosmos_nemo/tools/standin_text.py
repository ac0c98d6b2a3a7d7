"""A T5 folder of random weights, small enough to write in a moment, with a tokenizer for English."""

from pathlib import Path

from cosmos_nemo.checkpoint.writer.text_encoder import (
    english_vocabulary,
    text_config,
    untrained_text_weights,
    write_text_folder,
)


def write_text_encoder(folder: Path, *, text_dim: int, seed: int) -> None:
    """Writes config.json, tokenizer and model.safetensors of a T5 encoder of width `text_dim`.

    Text outside printable ASCII becomes unknown tokens. The same seed writes the same bytes.
    """
    vocabulary = english_vocabulary()
    config = text_config(text_dim=text_dim, vocab_size=len(vocabulary))
    weights = untrained_text_weights(config, seed=seed)
    write_text_folder(folder, config=config, vocabulary=vocabulary, weights=weights)
