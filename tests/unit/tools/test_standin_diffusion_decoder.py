from dataclasses import replace
from pathlib import Path

import torch

from cosmos_nemo.catalog import DIFFUSION_DECODER_7B, Family
from cosmos_nemo.checkpoint.aux_vars import read_generic_text
from cosmos_nemo.checkpoint.card_file import read_card_file
from cosmos_nemo.checkpoint.names import network_rules, parameter_shapes
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.tools.standin_diffusion_decoder import nano_decoder, write_diffusion_decoder
from tests.fakes import TINY

SHAPE = replace(TINY, family=Family.TOKEN_DECODER, token_vocab=50, token_dim=6)


def test_the_folder_is_what_the_repository_holds(tmp_path: Path) -> None:
    write_diffusion_decoder(SHAPE, tmp_path / "new", seed=0, card_overrides={"network": {"num_layers": 2}})
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"model.pt", "aux_vars.pt", "card.json"}
    checkpoint = open_checkpoint(tmp_path / "new")
    assert set(network_rules(SHAPE, checkpoint)) == set(parameter_shapes(SHAPE))
    assert checkpoint.shape("net.token_embedder.weight") == (50, 6)
    text = read_generic_text(tmp_path / "new", text_dim=32)
    assert text.shape == (1, 12, 32) and text.dtype == torch.bfloat16
    assert read_card_file(tmp_path / "new" / "model.pt") == {"network": {"num_layers": 2}}


def test_the_seed_decides_weights_and_text(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_diffusion_decoder(SHAPE, tmp_path / folder, seed=seed)
    for file, name in (("model.pt", "net.token_embedder.weight"), ("aux_vars.pt", "context")):
        a, b, c = (torch.load(tmp_path / folder / file, weights_only=True)[name] for folder in "abc")
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_nano_decoder_takes_what_the_released_one_takes() -> None:
    nano = nano_decoder(DIFFUSION_DECODER_7B)
    same = ("family", "token_vocab", "token_dim", "latent_channels", "rope_ratios_THW", "text_length")
    assert all(getattr(nano, name) == getattr(DIFFUSION_DECODER_7B, name) for name in same)
    assert (nano.num_layers, nano.hidden_size, nano.num_heads, nano.text_dim) == (4, 256, 8, 64)
