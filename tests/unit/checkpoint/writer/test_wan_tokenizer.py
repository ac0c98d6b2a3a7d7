import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.writer.wan_tokenizer import write_wan_folder
from cosmos_nemo.models.wan_tokenizer.model import WanTokenizer, build_autoencoder
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from cosmos_nemo.tools.standin_wan_tokenizer import random_weights

SHAPE = WanTokenizerShape(channels=8, channel_multipliers=(1, 2, 3, 2), num_res_blocks=1)
MEAN, STD = torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16)
FILES = {"config.json", "diffusion_pytorch_model.safetensors"}


def write(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    weights = {name: values.to(dtype) for name, values in random_weights(SHAPE, seed=0).items()}
    write_wan_folder(folder, SHAPE, weights, mean_C=MEAN, std_C=STD)
    return folder


@pytest.fixture
def video() -> Tensor:
    return 2 * torch.rand(1, 3, 5, 16, 24, generator=torch.Generator().manual_seed(0)) - 1


def test_diffusers_opens_the_folder_and_makes_what_we_make(tmp_path: Path, video: Tensor) -> None:
    from diffusers import AutoencoderKLWan

    theirs = AutoencoderKLWan.from_pretrained(write(tmp_path / "vae"), local_files_only=True)
    assert (theirs.config.latents_mean, theirs.config.latents_std) == (MEAN.tolist(), STD.tolist())
    autoencoder = build_autoencoder(SHAPE, device="cpu", dtype=torch.float32)
    autoencoder.load_state_dict(random_weights(SHAPE, seed=0))
    ours = WanTokenizer(autoencoder, mean_C=MEAN, std_C=STD)
    with torch.no_grad():
        mode = theirs.encode(video).latent_dist.mode()
        latent = ours.encode(video)
        raw = latent * STD.view(-1, 1, 1, 1) + MEAN.view(-1, 1, 1, 1)
        torch.testing.assert_close(raw, mode)
        torch.testing.assert_close(ours.decode(latent).clamp(-1, 1), theirs.decode(mode).sample)


def test_the_stage_reads_weights_and_statistics(tmp_path: Path, video: Tensor) -> None:
    with WanTokenizerStage(
        shape=SHAPE, folder=write(tmp_path / "vae"), device=torch.device("cpu")
    ) as tokenizer:
        assert torch.equal(tokenizer.module.mean_C, MEAN) and torch.equal(tokenizer.module.std_C, STD)
        read = tokenizer.module.autoencoder.state_dict()
    assert all(torch.equal(read[name], values) for name, values in random_weights(SHAPE, seed=0).items())


def test_the_configuration_says_every_size(tmp_path: Path) -> None:
    config = json.loads((write(tmp_path) / "config.json").read_text())
    assert config["dim_mult"] == [1, 2, 3, 2] and config["base_dim"] == 8
    assert config["num_res_blocks"] == 1 and config["z_dim"] == 16
    assert config["temperal_downsample"] == [False, True, True]


def test_others_may_read_the_files_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = write(tmp_path / "new" / "vae", dtype=torch.float16)
    assert {path.name for path in folder.iterdir()} == FILES
    modes = {(folder / name).stat().st_mode for name in FILES}
    assert len(modes) == 1, "not the same for the weights as for the configuration"
    count = sum(values.numel() for values in random_weights(SHAPE, seed=0).values())
    assert (folder / "diffusion_pytorch_model.safetensors").stat().st_size < 2 * count + 20_000


def test_weights_of_another_network_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not the tensors"):
        write_wan_folder(
            tmp_path / "vae", SHAPE, random_weights(SHAPE, seed=0, parts=("encoder",)), mean_C=MEAN, std_C=STD
        )
    assert not (tmp_path / "vae").exists()
