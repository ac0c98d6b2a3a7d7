import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer, build_autoencoder
from cosmos_nemo.tools.standin_wan_tokenizer import random_weights, write_released_wan_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "predict2_vae_a.safetensors"
TINY = WanTokenizerShape(channels=4, latent_channels=4)


def test_the_file_holds_the_names_and_shapes_of_upstream(tmp_path: Path) -> None:
    write_released_wan_tokenizer(TINY, tmp_path / "new", seed=0)
    file = open_checkpoint(tmp_path / "new" / "tokenizer.pth")
    assert file.layout == "torch"
    with safe_open(GOLDEN, "pt") as golden:
        upstream = {
            name.removeprefix("weights."): tuple(golden.get_slice(name).get_shape())
            for name in golden.keys()  # noqa: SIM118
            if name.startswith("weights.")
        }
    assert {name: file.shape(name) for name in file.names()} == upstream


def test_statistics_are_written_only_where_the_published_ones_cannot_serve(tmp_path: Path) -> None:
    write_released_wan_tokenizer(TINY, tmp_path / "few", seed=0)
    write_released_wan_tokenizer(WanTokenizerShape(channels=4), tmp_path / "sixteen", seed=0)
    config = json.loads((tmp_path / "few" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 4
    assert min(config["latents_std"]) > 0
    assert [path.name for path in (tmp_path / "sixteen").iterdir()] == ["tokenizer.pth"]


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_released_wan_tokenizer(TINY, tmp_path / folder, seed=seed)
    a, b, c = (torch.load(tmp_path / folder / "tokenizer.pth", weights_only=True) for folder in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["decoder.conv1.weight"], c["decoder.conv1.weight"])


def test_one_part_has_the_weights_that_it_has_beside_the_other() -> None:
    both = random_weights(TINY, seed=3)
    alone = random_weights(TINY, seed=3, parts=("decoder",))
    assert 0 < len(alone) < len(both)
    assert all(torch.equal(values, both[name]) for name, values in alone.items())


@pytest.mark.parametrize("channels", [4, 16])
def test_random_weights_make_videos_between_minus_one_and_one(channels: int) -> None:
    shape = WanTokenizerShape(channels=channels)
    autoencoder: nn.Module = build_autoencoder(shape, device="cpu", dtype=torch.float32, parts=("decoder",))
    weights = random_weights(shape, seed=3, parts=("decoder",))
    for name, parameter in autoencoder.named_parameters():
        parameter.copy_(weights[name])
    tokenizer = WanTokenizer(autoencoder, mean_C=torch.zeros(16), std_C=torch.ones(16))
    video = tokenizer.decode(torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert 0.2 < video.std() < 0.8
    assert (video.abs() < 1).float().mean() > 0.9
