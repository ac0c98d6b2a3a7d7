import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_nemo.catalog import DiscreteTokenizerShape, TokenizerShape
from cosmos_nemo.checkpoint.discrete_tokenizer_names import upstream_name
from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.stages.discrete_tokenizer import DiscreteTokenizerStage
from cosmos_nemo.tools.standin_discrete_tokenizer import (
    random_discrete_weights,
    write_released_discrete_tokenizer,
)
from cosmos_nemo.tools.standin_tokenizer import write_archive, write_released_tokenizer

SHAPE = DiscreteTokenizerShape(
    channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, levels=(8, 5, 5, 3)
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_released_discrete_tokenizer(SHAPE, folder, seed=0)
    return folder


@pytest.fixture
def released(written: Path, tmp_path: Path) -> Path:
    """The released layout, each test's own."""
    return Path(shutil.copytree(written, tmp_path / "tokenizer"))


def stage(folder: Path, **changes: object) -> DiscreteTokenizerStage:
    arguments: dict[str, object] = {"shape": SHAPE, "folder": folder, "device": CPU}
    return DiscreteTokenizerStage(**(arguments | changes))  # type: ignore[arg-type]


def video_of(frames: int = 9) -> Tensor:
    return 2 * torch.rand(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(frames)) - 1


def ids_of(latent_frames: int = 2) -> Tensor:
    return torch.randint(600, (1, latent_frames, 2, 3), generator=torch.Generator().manual_seed(1))


def load_state(path: Path) -> dict[str, Tensor]:
    archive = open_checkpoint(path)
    return {name: archive.read(name) for name in archive.names()}


def test_frames_are_levels_of_the_video_in_order(released: Path) -> None:
    with stage(released) as tokenizer:
        frames = tokenizer.decode(ids_of(3))
        video = tokenizer.module.decode(ids_of(3))
    assert frames.shape == (17, 32, 48, 3)
    assert frames.dtype == torch.uint8 and frames.device == CPU
    assert frames.float().std() > 10
    assert (frames.int() - to_uint8(video).int()).abs().max() <= 1


def test_ids_longer_than_a_piece_give_every_frame(released: Path) -> None:
    with stage(released, parts=("decoder",)) as tokenizer:
        assert len(tokenizer.decode(ids_of(10))) == 73


@pytest.mark.parametrize("frames", [1, 9])
def test_a_beginning_becomes_ids_and_frames_again(frames: int, released: Path) -> None:
    with stage(released) as tokenizer:
        ids = tokenizer.encode(video_of(frames))
        assert ids.shape == (1, 1 + frames // 8, 2, 3) and ids.dtype == torch.int64
        assert len(ids.unique()) > 3 and ids.max() < 600
        assert len(tokenizer.decode(ids)) == frames


def as_safetensors(folder: Path) -> None:
    write_released_discrete_tokenizer(SHAPE, folder, seed=0, layout="safetensors")


def as_diffusers_names(folder: Path) -> None:
    folder.mkdir()
    save_file(random_discrete_weights(SHAPE, seed=0), folder / "tokenizer.safetensors")


def as_training_checkpoint(folder: Path) -> None:
    """What tokenizer training saves: the network in a larger model, its averages, and the optimizer."""
    folder.mkdir()
    weights = {
        upstream_name(name, SHAPE): values for name, values in random_discrete_weights(SHAPE, seed=0).items()
    }
    model = {f"network.{name}": torch.zeros_like(values) for name, values in weights.items()}
    model |= {f"ema.network-{name.replace('.', '-')}": values for name, values in weights.items()}
    torch.save({"model": model, "optimizer": {"state": {}}, "iteration": 7}, folder / "model.pt")


@pytest.mark.parametrize("write", [as_safetensors, as_diffusers_names, as_training_checkpoint])
def test_every_layout_holds_the_same_tokenizer(
    write: Callable[[Path], None], released: Path, tmp_path: Path
) -> None:
    write(tmp_path / "other")
    with stage(released) as archives, stage(tmp_path / "other") as other:
        assert torch.equal(archives.encode(video_of()), other.encode(video_of()))
        assert torch.equal(archives.decode(ids_of()), other.decode(ids_of()))


def test_the_archive_of_both_parts_serves_where_there_is_no_other(released: Path) -> None:
    with stage(released) as parts:
        wanted = parts.encode(video_of()), parts.decode(ids_of())
    tensors = load_state(released / "encoder.jit") | load_state(released / "decoder.jit")
    write_archive(tensors, released / "autoencoder.jit")
    (released / "encoder.jit").unlink()
    (released / "decoder.jit").unlink()
    with stage(released) as both:
        assert torch.equal(both.encode(video_of()), wanted[0])
        assert torch.equal(both.decode(ids_of()), wanted[1])


@pytest.mark.parametrize(("part", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_a_part_alone_needs_no_other(part: str, other: str, released: Path) -> None:
    (released / f"{other}.jit").unlink()
    tokenizer = stage(released, parts=(part,))
    tokenizer.check()
    with tokenizer:
        if part == "encoder":
            assert tokenizer.encode(video_of()).shape == (1, 2, 2, 3)
        else:
            assert len(tokenizer.decode(ids_of())) == 9
    with pytest.raises(CheckpointError, match=rf"no discrete video {other}: one of {other}\.jit"):
        stage(released).check()


def test_the_network_is_float32_on_a_cpu_unless_told_otherwise(released: Path) -> None:
    assert stage(released).dtype == torch.float32
    assert stage(released, device=torch.device("cuda")).dtype == torch.bfloat16
    with stage(released, dtype=torch.bfloat16) as tokenizer:
        assert tokenizer.module.dtype == torch.bfloat16
        assert len(tokenizer.decode(tokenizer.encode(video_of()))) == 9


def test_a_parked_tokenizer_gives_up_its_weights_and_works_as_before(released: Path) -> None:
    tokenizer = stage(released, offload=True)
    with tokenizer:
        before = tokenizer.encode(video_of()), tokenizer.decode(ids_of())
    assert sum(tensor.numel() for tensor in tokenizer.module.parameters()) == 0
    with tokenizer:
        assert torch.equal(tokenizer.encode(video_of()), before[0])
        assert torch.equal(tokenizer.decode(ids_of()), before[1])


def test_a_good_folder_passes_the_check_and_nothing_is_built(released: Path) -> None:
    tokenizer = stage(released)
    tokenizer.check()
    assert tokenizer.module is None


def test_bad_ids_and_sizes_are_refused_and_the_stage_still_works(released: Path) -> None:
    with stage(released) as tokenizer:
        with pytest.raises(ValueError, match="id 600 is no video token"):
            tokenizer.decode(torch.full((1, 1, 2, 3), 600))
        with pytest.raises(ValueError, match="multiples of 16"):
            tokenizer.encode(torch.zeros(1, 3, 9, 32, 40))
        assert len(tokenizer.decode(ids_of())) == 9


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_truncated_archive_is_named(part: str, released: Path) -> None:
    path = released / f"{part}.jit"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=rf"{part}\.jit is truncated"):
        stage(released).check()


def test_an_empty_file_is_refused(released: Path) -> None:
    (released / "encoder.jit").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"encoder\.jit"):
        stage(released).check()


def test_a_file_in_place_of_the_folder_is_refused(released: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder\.jit is a file: pass the folder"):
        stage(released / "encoder.jit").check()


def test_a_tokenizer_of_other_channels_is_refused_with_the_first_shape(released: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"encoder\.jit: \d+ of \d+ tensors of another shape, first: .* is .* 16 chann"
    ):
        stage(released, shape=replace(SHAPE, channels=16)).check()


def test_a_continuous_tokenizer_is_refused(tmp_path: Path) -> None:
    shape = TokenizerShape(channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, statistics_frames=2)
    write_released_tokenizer(shape, tmp_path, seed=0)
    for part in ("encoder", "decoder"):
        with pytest.raises(
            CheckpointError, match=rf"{part}\.jit: .*Is it complete, and a discrete video tok"
        ):
            stage(tmp_path, parts=(part,)).check()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_codes_of_other_levels_are_refused_though_every_shape_fits(part: str, released: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\(8, 5, 5, 3\) values per channel, not \(8, 5, 3, 5\)"):
        stage(released, shape=replace(SHAPE, levels=(8, 5, 3, 5)), parts=(part,)).check()


def test_a_shape_that_cannot_be_is_refused_before_a_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"levels \(8, 1\)"):
        stage(tmp_path, shape=replace(SHAPE, levels=(8, 1))).check()
    with pytest.raises(ValueError, match="temporal_compression 32"):
        stage(tmp_path, shape=replace(SHAPE, temporal_compression=32)).check()


def test_a_renamed_tensor_is_refused(tmp_path: Path) -> None:
    as_safetensors(tmp_path)
    tensors = load_file(tmp_path / "tokenizer.safetensors")
    tensors["quant_cone.conv3d.bias"] = tensors.pop("quant_conv.conv3d.bias")
    save_file(tensors, tmp_path / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match=r"first: quant_conv\.conv3d\.bias; the file has quant_cone"):
        stage(tmp_path).check()


def test_a_build_that_fails_leaves_the_stage_empty(released: Path) -> None:
    (released / "decoder.jit").unlink()
    tokenizer = stage(released, offload=True)
    with pytest.raises(CheckpointError), tokenizer:
        pass
    assert tokenizer.module is None
