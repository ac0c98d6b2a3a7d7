from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.tools.standin_tokenizer import random_weights, write_released_tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "predict1_tokenizer_tiny.safetensors"
TINY = TokenizerShape(channels=6)


def test_the_archives_hold_the_names_and_shapes_of_upstream(tmp_path: Path) -> None:
    write_released_tokenizer(TINY, tmp_path / "new", seed=0)
    archives = [open_checkpoint(tmp_path / "new" / f"{part}.jit") for part in ("encoder", "decoder")]
    assert {archive.layout for archive in archives} == {"torchscript"}
    written = {name: archive.shape(name) for archive in archives for name in archive.names()}
    with safe_open(GOLDEN, "pt") as file:
        upstream = {
            name.removeprefix("weights."): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
            if name.startswith("weights.")
        }
    assert written == upstream


def test_the_statistics_have_the_sizes_of_the_released_ones(tmp_path: Path) -> None:
    write_released_tokenizer(TINY, tmp_path, seed=0)
    for name, count in (("mean_std.pt", 256), ("image_mean_std.pt", 16)):
        mean, std = torch.load(tmp_path / name, weights_only=True)
        assert mean.shape == std.shape == (count,)
        assert (std > 0).all()


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_released_tokenizer(TINY, tmp_path / folder, seed=seed, layout="safetensors")
    a, b, c = (load_file(tmp_path / folder / "tokenizer.safetensors") for folder in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    name = "decoder.conv_in.0.conv3d.weight"
    assert not torch.equal(a[name], c[name])


@pytest.mark.parametrize("channels", [6, 16])
def test_random_weights_make_videos_between_minus_one_and_one(channels: int) -> None:
    from cosmos_nemo.models.video_tokenizer.model import VideoTokenizer, build_autoencoder

    shape = TokenizerShape(channels=channels)
    autoencoder = build_autoencoder(shape, device="cpu", dtype=torch.float32, parts=("decoder",))
    weights = random_weights(shape, seed=3, parts=("decoder",))
    for name, parameter in autoencoder.named_parameters():
        parameter.copy_(weights[name])
    tokenizer = VideoTokenizer(autoencoder, mean_CT=torch.zeros(16, 16), std_CT=torch.ones(16, 16))
    video = tokenizer.decode(torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert 0.2 < video.std() < 0.8
    assert (video.abs() < 1).float().mean() > 0.9
