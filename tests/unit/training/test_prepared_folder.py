import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.catalog import find_card
from cosmos_nemo.training.data import DataError
from cosmos_nemo.training.prepared_folder import PreparedFolder

NANO = find_card("Cosmos-Nano-Text2World")
L, D = NANO.network.text_length, NANO.network.text_dim


def latent(name: int) -> Tensor:
    return torch.randn(16, 2, 4, 6, generator=torch.Generator().manual_seed(name))


def write(
    folder: Path, name: str | int, *, mask: Tensor | None = None, fps: float = 24, **other: Tensor
) -> None:
    """One sample as NeMo's script writes it, `other` in place of a tensor of that name."""
    tensors = {
        "video_latent": latent(int(name)) if str(name).isdecimal() else latent(0),
        "t5_text_embeddings": torch.ones(L, D, dtype=torch.bfloat16),
        "t5_text_mask": torch.ones(L) if mask is None else mask,
    } | other
    for part, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.{part}.pth")
    info = {"height": 64, "width": 64, "fps": fps, "num_frames": 9, "video_path": "a.mp4", "start_frame": 0}
    (folder / f"{name}.info.json").write_text(json.dumps(info))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (0, 1, 10, 2):
        write(tmp_path, name)
    return tmp_path


def test_samples_are_read_in_the_order_of_their_numbers(folder: Path) -> None:
    data = PreparedFolder(folder)
    assert data.names == ["0", "1", "2", "10"]
    assert (len(data), data.latent_shape, data.text_shape, data.fps) == (4, (16, 2, 4, 6), (L, D), 24)
    batch = data.batch([3, 1])
    assert torch.equal(batch.latent_BCTHW, torch.stack([latent(10), latent(1)]))
    assert batch.text_BLD.shape == (2, L, D) and batch.fps == 24


def test_an_axis_of_one_in_front_is_taken_off(tmp_path: Path) -> None:
    write(tmp_path, 0)
    write(
        tmp_path,
        1,
        video_latent=latent(1)[None],
        t5_text_embeddings=torch.ones(1, L, D),
        mask=torch.ones(1, L, dtype=torch.bool),
    )
    batch = PreparedFolder(tmp_path).batch([0, 1])
    assert torch.equal(batch.latent_BCTHW[1], latent(1))


def test_rows_past_the_end_of_the_mask_are_zero_and_those_before_are_kept(tmp_path: Path) -> None:
    mask = torch.zeros(L)
    mask[:5] = 1
    mask[2] = 0
    write(tmp_path, 0, mask=mask)
    text_LD = PreparedFolder(tmp_path).batch([0]).text_BLD[0]
    assert text_LD[:5].eq(1).all() and text_LD[5:].eq(0).all()


def test_read_samples_stay_in_memory_up_to_the_limit(folder: Path) -> None:
    size = 16 * 2 * 4 * 6 * 4 + L * D * 2
    data = PreparedFolder(folder, cache_bytes=2 * size)
    before = data.batch([0, 1, 2]).latent_BCTHW
    for name in (0, 1, 2):
        torch.save(torch.zeros(16, 2, 4, 6), folder / f"{name}.video_latent.pth")
    after = data.batch([0, 1, 2]).latent_BCTHW
    assert torch.equal(before[:2], after[:2])
    assert after[2].eq(0).all()


def test_a_changed_batch_does_not_change_the_memory(folder: Path) -> None:
    data = PreparedFolder(folder, cache_bytes=2**30)
    for tensor in (data.batch([0]).latent_BCTHW, data.batch([0]).text_BLD):
        tensor.zero_()
    assert torch.equal(data.batch([0]).latent_BCTHW[0], latent(0)) and data.batch([0]).text_BLD.eq(1).all()


@pytest.mark.parametrize(
    "part", ["video_latent.pth", "t5_text_embeddings.pth", "t5_text_mask.pth", "info.json"]
)
def test_a_missing_file_is_named(folder: Path, part: str) -> None:
    (folder / f"2.{part}").unlink()
    with pytest.raises(DataError, match=rf"2\.{part} is missing"):
        PreparedFolder(folder)


@pytest.mark.parametrize("part", ["video_latent.pth", "t5_text_embeddings.pth", "t5_text_mask.pth"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_named_before_anything_is_read(folder: Path, part: str, kept: float) -> None:
    path = folder / f"10.{part}"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=rf"10\.{part} is truncated or damaged"):
        PreparedFolder(folder)


def test_files_of_other_content_are_named(folder: Path) -> None:
    torch.save({"a": 1}, folder / "1.video_latent.pth")
    with pytest.raises(DataError, match=r"1\.video_latent\.pth holds a dict"):
        PreparedFolder(folder)
    write(folder, 1, video_latent=torch.zeros(2, 16, 2, 4, 6))
    with pytest.raises(DataError, match=r"1\.video_latent\.pth holds .*\[2, 16, 2, 4, 6\].* 4 axes"):
        PreparedFolder(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"fps": "fast"}', '{"fps": 0}', '{"fps": NaN}'])
def test_an_info_without_a_frame_rate_is_named(folder: Path, content: str) -> None:
    (folder / "2.info.json").write_text(content)
    with pytest.raises(DataError, match=r"2\.info\.json"):
        PreparedFolder(folder)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"video_latent": torch.zeros(16, 3, 4, 6)}, r"2\.video_latent\.pth is \[16, 3, 4, 6\]"),
        (
            {"t5_text_embeddings": torch.zeros(L, 2)},
            rf"2\.t5_text_embeddings\.pth is \[{L}, 2\], but 0\.t5_text_embeddings",
        ),
        ({"mask": torch.ones(3)}, r"2\.t5_text_mask\.pth has 3 numbers"),
        ({"fps": 30}, r"2\.info\.json says 30 fps, but 0\.info\.json says 24"),
    ],
)
def test_a_sample_unlike_the_first_is_named(folder: Path, other: dict, message: str) -> None:
    write(folder, 2, **other)
    with pytest.raises(DataError, match=message):
        PreparedFolder(folder)


def test_nearly_equal_frame_rates_are_one(folder: Path) -> None:
    write(folder, 1, fps=23.976)
    assert PreparedFolder(folder).fps == 24


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".0.info.json.partial").write_text("")
    with pytest.raises(DataError, match="holds no samples"):
        PreparedFolder(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        PreparedFolder(tmp_path / "missing")


def test_names_need_not_be_numbers(tmp_path: Path) -> None:
    for name in ("1-10", "1-2", "b"):
        write(tmp_path, name)
    assert PreparedFolder(tmp_path).names == ["1-2", "1-10", "b"]


def test_the_samples_are_checked_against_the_card(folder: Path) -> None:
    data = PreparedFolder(folder)
    data.check(NANO)
    with pytest.raises(DataError, match=r"0\.t5_text_embeddings\.pth .*7B-Text2World takes \[512, 1024\]"):
        data.check(find_card("Cosmos-1.0-Diffusion-7B-Text2World"))
    with pytest.raises(DataError, match=r"0\.video_latent\.pth has 16 channels, but .* takes 8"):
        data.check(replace(NANO, network=replace(NANO.network, latent_channels=8)))
    with pytest.raises(DataError, match="takes at most 1 x 64 x 64"):
        data.check(replace(NANO, network=replace(NANO.network, max_latent_frames=1)))
    with pytest.raises(DataError, match="multiples of 4"):
        data.check(replace(NANO, network=replace(NANO.network, patch_size=4)))


def test_samples_of_one_latent_frame_leave_a_video2world_nothing_to_learn(tmp_path: Path) -> None:
    write(tmp_path, 0, video_latent=torch.zeros(16, 1, 4, 6))
    data = PreparedFolder(tmp_path)
    data.check(NANO)
    with pytest.raises(DataError, match="has one frame, but Cosmos-Nano-Video2World learns what follows"):
        data.check(find_card("Cosmos-Nano-Video2World"))


def test_two_latent_frames_are_enough_for_a_video2world(folder: Path) -> None:
    PreparedFolder(folder).check(find_card("Cosmos-Nano-Video2World"))


@pytest.mark.parametrize(
    ("latent_frames", "num_frames", "fits"),
    [(3, 10, True), (3, None, True), (3, 17, False), (2, 10, False), (4, 10, False)],
)
def test_an_interpolator_takes_only_samples_that_were_prepared_for_one(
    tmp_path: Path, latent_frames: int, num_frames: int | None, fits: bool
) -> None:
    """Seventeen video frames are three latent frames too, the last of which is no image."""
    write(tmp_path, 0, video_latent=torch.zeros(16, latent_frames, 4, 6))
    info = {"fps": 24} if num_frames is None else {"fps": 24, "num_frames": num_frames}
    (tmp_path / "0.info.json").write_text(json.dumps(info))
    data, card = PreparedFolder(tmp_path), find_card("Cosmos-Nano-WorldInterpolator")
    if fits:
        data.check(card)
        return
    with pytest.raises(DataError, match=r"learns from 3 of 10: prepare videos with --model Cosmos-Nano"):
        data.check(card)


def test_a_predict2_needs_two_latent_frames_and_samples_that_were_prepared_here(tmp_path: Path) -> None:
    """NeMo's script, which leaves no prepared.json, has the tokenizer of Cosmos-1.0."""
    card = find_card("Cosmos-Nano-Predict2-Video2World")
    settings = tmp_path / "prepared.json"
    settings.write_text("{}")
    write(tmp_path, 0, video_latent=torch.zeros(16, 1, 4, 6))
    with pytest.raises(DataError, match="prepare videos of 5 frames or more"):
        PreparedFolder(tmp_path).check(card)
    write(tmp_path, 0)
    for told in ({}, {"model": "My-Own-World"}, {"model": card.name}, []):
        settings.write_text(json.dumps(told))
        PreparedFolder(tmp_path).check(card)
    settings.unlink()
    with pytest.raises(DataError, match=r"has no prepared\.json, as folders of NeMo's script"):
        PreparedFolder(tmp_path).check(card)
    PreparedFolder(tmp_path).check(NANO)
    (tmp_path / "prepared.json").write_text(json.dumps({"model": NANO.name}))
    with pytest.raises(DataError, match=f"was prepared for {NANO.name}, whose tokenizer is not"):
        PreparedFolder(tmp_path).check(card)
    (tmp_path / "prepared.json").write_text("{")
    with pytest.raises(DataError, match=r"prepared\.json is damaged"):
        PreparedFolder(tmp_path).check(card)
