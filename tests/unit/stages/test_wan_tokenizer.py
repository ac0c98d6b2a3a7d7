import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_nemo.catalog import WanTokenizerShape
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.checkpoint.wan_tokenizer_names import diffusers_names
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.models.wan_tokenizer import streaming
from cosmos_nemo.stages.wan_tokenizer import PUBLISHED_MEAN, PUBLISHED_STD, WanTokenizerStage
from cosmos_nemo.tools.standin_wan_tokenizer import write_released_wan_tokenizer

SHAPE = WanTokenizerShape(channels=8, channel_multipliers=(1, 2, 2, 2), num_res_blocks=1)
CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_released_wan_tokenizer(SHAPE, folder, seed=0)
    return folder


@pytest.fixture
def released(written: Path, tmp_path: Path) -> Path:
    """The released layout, each test's own."""
    return Path(shutil.copytree(written, tmp_path / "tokenizer"))


@pytest.fixture
def diffusers(written: Path, tmp_path: Path) -> Path:
    """The same weights as diffusers' `vae` folder."""
    folder, names = tmp_path / "vae", diffusers_names(SHAPE)
    folder.mkdir()
    tensors = torch.load(written / "tokenizer.pth", weights_only=True)
    save_file({names[name]: values for name, values in tensors.items()}, folder / WEIGHTS)
    configure(folder, PUBLISHED_MEAN, PUBLISHED_STD)
    return folder


def configure(folder: Path, mean: object, std: object) -> None:
    config = {"_class_name": "AutoencoderKLWan", "latents_mean": mean, "latents_std": std}
    (folder / "config.json").write_text(json.dumps(config))


def stage(folder: Path, **changes: object) -> WanTokenizerStage:
    arguments: dict[str, object] = {"shape": SHAPE, "folder": folder, "device": CPU, "offload": False}
    return WanTokenizerStage(**(arguments | changes))  # type: ignore[arg-type]


def latent_of(frames: int = 3) -> Tensor:
    return torch.randn(1, 16, frames, 2, 3, generator=torch.Generator().manual_seed(frames))


def video_of(frames: int) -> Tensor:
    return 2 * torch.rand(1, 3, frames, 16, 24, generator=torch.Generator().manual_seed(2)) - 1


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrites the tensors of a .pth after `edit`."""
    tensors = torch.load(path, weights_only=True)
    edit(tensors)
    torch.save(tensors, path)


@pytest.mark.parametrize("frames", [1, 5])
def test_frames_are_levels_of_the_video_in_order(frames: int, released: Path) -> None:
    with stage(released) as tokenizer:
        levels = tokenizer.decode(latent_of(frames))
        video = tokenizer.module.decode(latent_of(frames))
    assert levels.shape == (4 * frames - 3, 16, 24, 3)
    assert levels.dtype == torch.uint8 and levels.device == CPU
    assert (levels.int() - to_uint8(video).int()).abs().max() <= 1


def test_values_beyond_one_become_the_last_levels(released: Path) -> None:
    change(
        released / "tokenizer.pth", lambda tensors: tensors["decoder.head.2.bias"].copy_(Tensor([9, -9, 0]))
    )
    with stage(released) as tokenizer:
        levels = tokenizer.decode(latent_of(2))
    assert set(levels[..., 0].flatten().tolist()) == {255}
    assert set(levels[..., 1].flatten().tolist()) == {0}
    assert levels[..., 2].unique().numel() > 10


def test_each_piece_of_the_video_becomes_levels_before_the_next_is_made(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def note(frames: Tensor) -> Tensor:
        events.append(f"levels {frames.shape[2]}")
        return to_uint8(frames)

    def make(*given: Any) -> Tensor:
        events.append("made")
        return made(*given)

    made = streaming._decode_piece
    monkeypatch.setattr(streaming, "_decode_piece", make)
    monkeypatch.setattr("cosmos_nemo.stages.continuous_tokenizer.to_uint8", note)
    with stage(released) as tokenizer:
        tokenizer.decode(latent_of(4))
    assert events == ["made", "levels 5", "made", "levels 8"]


def test_the_released_file_has_the_published_statistics(released: Path) -> None:
    with stage(released) as tokenizer:
        assert tokenizer.module.mean_C.tolist() == Tensor(PUBLISHED_MEAN).tolist()
        assert tokenizer.module.std_C.tolist() == Tensor(PUBLISHED_STD).tolist()
    assert (len(PUBLISHED_MEAN), len(PUBLISHED_STD)) == (16, 16)


def test_the_published_statistics_are_those_that_diffusers_has_by_default() -> None:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        config = AutoencoderKLWan(base_dim=4).config
    assert (list(PUBLISHED_MEAN), list(PUBLISHED_STD)) == (config.latents_mean, config.latents_std)


def test_every_layout_and_name_holds_the_same_tokenizer(released: Path, diffusers: Path) -> None:
    renamed = released.with_name("renamed")
    renamed.mkdir()
    shutil.copy(released / "tokenizer.pth", renamed / "Wan2.1_VAE.pth")
    with stage(released) as wanted:
        for folder in (renamed, diffusers):
            stage(folder).check()
            with stage(folder) as tokenizer:
                assert torch.equal(tokenizer.decode(latent_of()), wanted.decode(latent_of()))
                assert torch.equal(tokenizer.encode(video_of(5)), wanted.encode(video_of(5)))


def test_the_released_file_is_taken_before_the_others(released: Path, diffusers: Path) -> None:
    for name in (WEIGHTS, "config.json"):
        shutil.copy(diffusers / name, released)
    for wrong in (WEIGHTS, "Wan2.1_VAE.pth"):
        (released / wrong).write_bytes(b"no tensors")
    stage(released).check()
    (released / "tokenizer.pth").unlink()
    with pytest.raises(CheckpointError, match=r"Wan2\.1_VAE\.pth"):
        stage(released).check()


@pytest.mark.parametrize("layout", ["released", "diffusers"])
def test_the_statistics_of_a_configuration_are_used(layout: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(layout)
    with stage(folder) as tokenizer:
        latent = tokenizer.encode(video_of(5))
    configure(folder, PUBLISHED_MEAN, [2 * value for value in PUBLISHED_STD])
    with stage(folder) as tokenizer:
        torch.testing.assert_close(tokenizer.encode(video_of(5)), latent / 2)


def test_a_configuration_of_something_else_beside_the_released_file_changes_nothing(released: Path) -> None:
    with stage(released) as tokenizer:
        latent = tokenizer.encode(video_of(1))
    (released / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 1536}))
    with stage(released) as tokenizer:
        assert torch.equal(tokenizer.encode(video_of(1)), latent)


def test_another_number_of_latent_channels_needs_statistics_of_its_own(tmp_path: Path) -> None:
    shape = WanTokenizerShape(channels=4, num_res_blocks=1, latent_channels=4)
    write_released_wan_tokenizer(shape, tmp_path, seed=0)
    with stage(tmp_path, shape=shape) as tokenizer:
        assert tokenizer.encode(video_of(5)).shape == (1, 4, 2, 2, 3)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no statistics for 4 latent channels.*are for 16"):
        stage(tmp_path, shape=shape).check()


def test_an_image_is_to_this_tokenizer_the_first_frame_of_a_video(released: Path) -> None:
    with stage(released) as tokenizer:
        latent = tokenizer.encode(video_of(5))[:, :, :1]
        for as_image in (True, False, None):
            torch.testing.assert_close(tokenizer.encode(video_of(5)[:, :, :1], as_image=as_image), latent)


def test_only_the_part_that_is_asked_for_is_needed_and_kept(released: Path) -> None:
    def drop_encoder(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(("encoder.", "conv1."))]:
            del tensors[name]

    with stage(released) as both:
        wanted = both.decode(latent_of())
    for drop in (lambda tensors: None, drop_encoder):
        change(released / "tokenizer.pth", drop)
        tokenizer = stage(released, parts=("decoder",))
        tokenizer.check()
        with tokenizer:
            names = {name.split(".")[1] for name, _ in tokenizer.module.named_parameters()}
            assert names == {"decoder", "post_quant_conv"}
            assert torch.equal(tokenizer.decode(latent_of()), wanted)
    with pytest.raises(CheckpointError, match=r"tensors missing, first: encoder\.conv1\.weight"):
        stage(released).check()


def test_the_network_is_float32_on_a_cpu_unless_told_otherwise(released: Path) -> None:
    assert stage(released).dtype == torch.float32
    with stage(released) as tokenizer:
        wanted = tokenizer.decode(latent_of()).int()
    with stage(released, dtype=torch.bfloat16) as tokenizer:
        assert tokenizer.module.dtype == torch.bfloat16
        assert tokenizer.module.mean_C.dtype == torch.float32
        assert (tokenizer.decode(latent_of()).int() - wanted).abs().float().mean() < 3


def test_a_parked_tokenizer_gives_up_its_weights_and_decodes_as_before(released: Path) -> None:
    tokenizer = stage(released, offload=True)
    with tokenizer:
        before = tokenizer.decode(latent_of())
    assert sum(tensor.numel() for tensor in tokenizer.module.parameters()) == 0
    with tokenizer:
        assert torch.equal(tokenizer.decode(latent_of()), before)


def test_a_good_folder_passes_the_check_without_being_built(released: Path) -> None:
    tokenizer = stage(released)
    tokenizer.check()
    assert tokenizer.module is None


def test_a_folder_without_a_tokenizer_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no video tokenizer: one of tokenizer\.pth, Wan2\.1_VAE\.pth"):
        stage(tmp_path).check()


@pytest.mark.parametrize(("layout", "name"), [("released", "tokenizer.pth"), ("diffusers", WEIGHTS)])
def test_a_truncated_file_is_named(layout: str, name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(layout) / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        stage(path.parent).check()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_of_something_else_is_named(content: bytes, released: Path) -> None:
    (released / "tokenizer.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.pth is no file of torch\.save"):
        stage(released).check()


def test_a_tokenizer_of_another_size_is_refused_with_the_first_shape(released: Path) -> None:
    wider = WanTokenizerShape(channels=16, channel_multipliers=(1, 2, 2, 2), num_res_blocks=1)
    with pytest.raises(
        CheckpointError, match=r"of another shape, first: encoder\.conv1\.weight is .*of 16 channels\?"
    ):
        stage(released, shape=wider).check()


def test_a_renamed_tensor_is_refused_before_anything_is_built(released: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["decoder.head.1.gamma"] = tensors.pop("decoder.head.0.gamma")

    change(released / "tokenizer.pth", rename)
    tokenizer = stage(released)
    with pytest.raises(
        CheckpointError,
        match=r"first: decoder\.head\.0\.gamma \(nearest in the file: decoder\.head\.1\.gamma",
    ):
        tokenizer.check()
    with pytest.raises(CheckpointError), tokenizer:
        pass
    assert tokenizer.module is None


def test_a_tensor_too_many_is_refused(diffusers: Path) -> None:
    tensors = load_file(diffusers / WEIGHTS)
    tensors["decoder.up_blocks.9.resnets.0.norm1.gamma"] = torch.ones(8, 1, 1, 1)
    save_file(tensors, diffusers / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"belong to another network, first: decoder\.up_blocks\.9"):
        stage(diffusers).check()


@pytest.mark.parametrize(
    ("mean", "std", "complaint"),
    [
        ([0.0] * 16, [1.0] * 15, "16 means and 15 standard deviations, but this tokenizer has 16"),
        ([0.0] * 16, [0.0] * 16, "non-positive"),
        ([float("nan")] * 16, [1.0] * 16, "NaN"),
        ("none", [1.0] * 16, "no lists latents_mean"),
        ([[0.0], [0.0, 1.0]], [1.0] * 16, "no lists latents_mean"),
        (None, [1.0] * 16, "no lists latents_mean"),
    ],
    ids=["size", "zero", "nan", "text", "ragged", "null"],
)
@pytest.mark.parametrize("layout", ["released", "diffusers"])
def test_statistics_that_make_no_sense_are_refused(
    layout: str, mean: object, std: object, complaint: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(layout)
    configure(folder, mean, std)
    with pytest.raises(CheckpointError, match=complaint):
        stage(folder).check()


def test_a_diffusers_folder_without_statistics_says_what_it_lacks(diffusers: Path) -> None:
    (diffusers / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json has no lists latents_mean"):
        stage(diffusers).check()
    (diffusers / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no latent statistics: config\.json is missing"):
        stage(diffusers).check()


def test_a_damaged_configuration_is_named(released: Path) -> None:
    (released / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        stage(released).check()


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("created-by-a-pickle",)


def test_a_file_that_would_run_code_is_refused(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1), "other": Dangerous()}, released / "tokenizer.pth")
    with pytest.raises(CheckpointError, match="only tensors and plain containers"):
        stage(released).check()
    assert not (tmp_path / "created-by-a-pickle").exists()
