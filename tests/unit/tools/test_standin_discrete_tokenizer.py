from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint.reader import open_checkpoint
from cosmos_nemo.models.discrete_tokenizer.model import DiscreteTokenizer, build_autoencoder
from cosmos_nemo.tools.standin_discrete_tokenizer import (
    random_discrete_weights,
    write_released_discrete_tokenizer,
)

TINY = DiscreteTokenizerShape(
    channels=4, channel_multipliers=(1, 2, 2), num_res_blocks=1, latent_channels=4, levels=(7, 5, 2)
)


def test_the_archives_hold_what_tracing_captured_too(tmp_path: Path) -> None:
    write_released_discrete_tokenizer(TINY, tmp_path / "new", seed=0)
    encoder, decoder = (open_checkpoint(tmp_path / "new" / f"{part}.jit") for part in ("encoder", "decoder"))
    assert {encoder.layout, decoder.layout} == {"torchscript"}
    for constant in ("wavelets", "_arange", "patch_size_buffer"):
        assert f"encoder.patcher3d.{constant}" in encoder.names()
    assert encoder.read("quantizer._levels").tolist() == [7, 5, 2]
    assert decoder.read("inv_quant.quantizer._basis").tolist() == [1, 7, 35]
    assert encoder.shape("quantizer.implicit_codebook") == (70, 3)
    assert encoder.shape("quant_conv.conv3d.weight") == (3, 4, 1, 1, 1)
    assert decoder.shape("post_quant_conv.conv3d.weight") == (4, 3, 1, 1, 1)
    assert not any(name.startswith(("decoder.", "post_")) for name in encoder.names())


def test_the_seed_decides_the_weights_in_either_layout(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_released_discrete_tokenizer(TINY, tmp_path / folder, seed=seed, layout="safetensors")
    a, b, c = (load_file(tmp_path / folder / "tokenizer.safetensors") for folder in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    name = "decoder.conv_in.0.conv3d.weight"
    assert not torch.equal(a[name], c[name])
    write_released_discrete_tokenizer(TINY, tmp_path / "jit", seed=0)
    assert torch.equal(open_checkpoint(tmp_path / "jit" / "decoder.jit").read(name), a[name])


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_video_has_many_different_ids_and_ids_make_a_video(channels: int, seed: int) -> None:
    shape = DiscreteTokenizerShape(channels=channels, channel_multipliers=(1, 2, 2))
    autoencoder = build_autoencoder(shape, device="cpu", dtype=torch.float32)
    weights = random_discrete_weights(shape, seed=seed)
    for name, parameter in autoencoder.named_parameters():
        parameter.copy_(weights[name])
    tokenizer = DiscreteTokenizer(autoencoder, levels=shape.levels)
    draw = torch.Generator().manual_seed(0)
    ids = tokenizer.encode(2 * torch.rand(1, 3, 9, 96, 96, generator=draw) - 1)
    assert len(ids.unique()) > 0.4 * ids.numel()
    smooth = torch.linspace(-1, 1, 96).view(1, 1, 1, 1, 96).expand(1, 3, 1, 96, 96)
    assert len(tokenizer.encode(smooth).unique()) > 9
    video = tokenizer.decode(torch.randint(64000, (1, 2, 4, 4), generator=draw))
    assert 0.2 < video.std() < 0.8
    assert (video.abs() < 1).float().mean() > 0.9
