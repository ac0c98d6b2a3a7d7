import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_nemo.catalog import TokenizerShape
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.tools.standin_tokenizer import random_weights, write_archive, write_released_tokenizer

SHAPE = TokenizerShape(channels=8, channel_multipliers=(1, 2, 2), statistics_frames=6)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_released_tokenizer(SHAPE, folder, seed=0)
    return folder


@pytest.fixture
def released(written: Path, tmp_path: Path) -> Path:
    """The released layout, each test's own."""
    return Path(shutil.copytree(written, tmp_path / "tokenizer"))


def stage(folder: Path, **changes: object) -> Tokenizer:
    arguments: dict[str, object] = {"shape": SHAPE, "folder": folder, "device": CPU, "offload": False}
    return Tokenizer(**(arguments | changes))  # type: ignore[arg-type]


def latent_of(frames: int = 3) -> Tensor:
    return torch.randn(1, 16, frames, 2, 3, generator=torch.Generator().manual_seed(frames))


def as_safetensors(folder: Path) -> None:
    write_released_tokenizer(SHAPE, folder, seed=0, layout="safetensors")


def as_diffusers(folder: Path) -> None:
    folder.mkdir()
    save_file(random_weights(SHAPE, seed=0), folder / "diffusion_pytorch_model.safetensors")
    write_released_tokenizer(SHAPE, folder / "other", seed=0)
    mean, std = torch.load(folder / "other" / "mean_std.pt", weights_only=True)
    config = {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
    (folder / "config.json").write_text(json.dumps(config))


def test_frames_are_levels_of_the_video_in_order(released: Path) -> None:
    with stage(released) as tokenizer:
        frames = tokenizer.decode(latent_of(5))
        video = tokenizer.module.decode(latent_of(5))
    assert frames.shape == (33, 16, 24, 3)
    assert frames.dtype == torch.uint8 and frames.device == CPU
    assert (frames.int() - to_uint8(video).int()).abs().max() <= 1


def test_a_latent_longer_than_a_piece_gives_every_frame(released: Path) -> None:
    shape = TokenizerShape(channels=8, channel_multipliers=(1, 2, 2), statistics_frames=16)
    write_released_tokenizer(shape, released, seed=0)
    with stage(released, shape=shape) as tokenizer:
        assert tokenizer.decode(latent_of(16)).shape == (121, 16, 24, 3)


@pytest.mark.parametrize("write", [as_safetensors, as_diffusers])
def test_every_layout_holds_the_same_decoder(
    write: Callable[[Path], None], released: Path, tmp_path: Path
) -> None:
    write(tmp_path / "other")
    with (
        stage(released, parts=("decoder",)) as archives,
        stage(tmp_path / "other", parts=("decoder",)) as other,
    ):
        assert not torch.equal(archives.decode(latent_of(1)), archives.decode(latent_of(2))[:1])
        for frames in (2, 3):
            assert torch.equal(archives.decode(latent_of(frames)), other.decode(latent_of(frames)))


def test_the_archive_of_both_parts_serves_where_there_is_no_other(released: Path, tmp_path: Path) -> None:
    with stage(released) as parts:
        wanted = parts.decode(latent_of())
    tensors = load_state(released / "encoder.jit") | load_state(released / "decoder.jit")
    write_archive(tensors, released / "autoencoder.jit")
    (released / "encoder.jit").unlink()
    (released / "decoder.jit").unlink()
    with stage(released) as both:
        assert torch.equal(both.decode(latent_of()), wanted)


def load_state(path: Path) -> dict[str, Tensor]:
    archive = open_checkpoint(path)
    return {name: archive.read(name) for name in archive.names()}


def test_encoding_and_decoding_use_the_statistics_of_the_folder(released: Path) -> None:
    video = 2 * torch.rand(1, 3, 9, 16, 24) - 1
    with stage(released) as tokenizer:
        latent = tokenizer.encode(video)
    mean, std = torch.load(released / "mean_std.pt", weights_only=True)
    torch.save((mean, 2 * std), released / "mean_std.pt")
    with stage(released) as tokenizer:
        torch.testing.assert_close(tokenizer.encode(video), latent / 2)


def test_one_frame_uses_the_statistics_of_images(released: Path) -> None:
    video = torch.zeros(1, 3, 1, 16, 24)
    with stage(released) as tokenizer:
        with_image = tokenizer.encode(video)
    (released / "image_mean_std.pt").unlink()
    with stage(released) as tokenizer:
        without = tokenizer.encode(video)
    assert with_image.shape == without.shape
    assert not torch.allclose(with_image, without)


def test_only_the_decoder_is_needed_to_decode(released: Path) -> None:
    (released / "encoder.jit").unlink()
    tokenizer = stage(released, parts=("decoder",))
    tokenizer.check()
    with tokenizer:
        names = {name.split(".")[1] for name, _ in tokenizer.module.named_parameters()}
        assert names == {"decoder", "post_quant_conv"}
        assert len(tokenizer.decode(latent_of())) == 17
    with pytest.raises(CheckpointError, match=r"no video encoder: one of encoder\.jit"):
        stage(released).check()


def test_the_network_is_float32_on_a_cpu_unless_told_otherwise(released: Path) -> None:
    assert stage(released).dtype == torch.float32
    with stage(released, dtype=torch.bfloat16) as tokenizer:
        assert tokenizer.module.dtype == torch.bfloat16
        assert tokenizer.module.mean_CT.dtype == torch.float32
        assert len(tokenizer.decode(latent_of())) == 17


def test_a_parked_tokenizer_gives_up_its_weights_and_decodes_as_before(released: Path) -> None:
    tokenizer = stage(released, offload=True)
    with tokenizer:
        before = tokenizer.decode(latent_of())
    assert sum(tensor.numel() for tensor in tokenizer.module.parameters()) == 0
    with tokenizer:
        assert torch.equal(tokenizer.decode(latent_of()), before)


def test_a_good_folder_passes_the_check(released: Path) -> None:
    tokenizer = stage(released)
    tokenizer.check()
    assert tokenizer.module is None


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_truncated_archive_is_named(released: Path) -> None:
    truncate(released / "decoder.jit")
    with pytest.raises(CheckpointError, match=r"decoder\.jit is truncated"):
        stage(released).check()


def test_a_truncated_safetensors_file_is_named(tmp_path: Path) -> None:
    as_safetensors(tmp_path)
    truncate(tmp_path / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors"):
        stage(tmp_path).check()


def test_an_archive_of_another_size_is_refused_with_the_first_shape(released: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"decoder\.jit: \d+ of 172 tensors of another shape, first: .* is "
    ):
        stage(
            released, shape=TokenizerShape(channels=16, channel_multipliers=(1, 2, 2)), parts=("decoder",)
        ).check()


def test_a_renamed_tensor_is_refused(tmp_path: Path) -> None:
    as_safetensors(tmp_path)
    tensors = load_file(tmp_path / "tokenizer.safetensors")
    tensors["decoder.norm_off.norm.bias"] = tensors.pop("decoder.norm_out.norm.bias")
    save_file(tensors, tmp_path / "tokenizer.safetensors")
    with pytest.raises(
        CheckpointError, match=r"first: decoder\.norm_out\.norm\.bias; the file has decoder\.norm_off"
    ):
        stage(tmp_path).check()


@pytest.mark.parametrize("name", ["mean_std.pt", "image_mean_std.pt"])
def test_damaged_statistics_are_named(name: str, released: Path) -> None:
    truncate(released / name)
    with pytest.raises(CheckpointError, match=rf"{name} is truncated or damaged"):
        stage(released).check()


def test_missing_statistics_are_named(released: Path) -> None:
    (released / "mean_std.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mean_std\.pt is missing"):
        stage(released).check()


def test_a_diffusers_folder_without_statistics_says_what_it_lacks(tmp_path: Path) -> None:
    as_diffusers(tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json has no latents_mean"):
        stage(tmp_path / "vae").check()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ((torch.zeros(96), torch.ones(95)), "96 means and 95 standard deviations, but this tokenizer has 96"),
        ((torch.zeros(96), torch.zeros(96)), "non-positive"),
        ((torch.full((96,), torch.nan), torch.ones(96)), "NaN"),
        ({"mean": torch.zeros(96)}, "no pair of tensors"),
        ((torch.zeros(96), torch.ones(96), torch.ones(96)), "no pair of tensors"),
    ],
    ids=["size", "zero", "nan", "dict", "three"],
)
def test_statistics_that_make_no_sense_are_refused(content: object, complaint: str, released: Path) -> None:
    torch.save(content, released / "mean_std.pt")
    with pytest.raises(CheckpointError, match=complaint):
        stage(released).check()


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("created-by-a-pickle",)


def test_statistics_that_would_run_code_are_refused(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save((torch.zeros(96), Dangerous()), released / "mean_std.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        stage(released).check()
    assert not (tmp_path / "created-by-a-pickle").exists()
