from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmos_nemo.models.face_detector.model import to_pictures
from cosmos_nemo.stages.guardrail.outcome import Blocked
from cosmos_nemo.stages.guardrail.siglip import encode, siglip_folder
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard, check_video_guard
from cosmos_nemo.tools.standin_video_guard import write_video_guard

SIGLIP = "video_content_safety_filter/models--google--siglip-so400m-patch14-384"


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def ordinary_videos() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 128, 128, 3), generator=draw, dtype=torch.uint8)
    ramp = torch.arange(128, dtype=torch.uint8).expand(3, 3, 128, 128).permute(0, 2, 3, 1).contiguous()
    return [noise, ramp, torch.zeros_like(noise), torch.full_like(noise, 255)]


def guard_of(folder: Path) -> VideoGuard:
    return VideoGuard(folder=folder, device=torch.device("cpu"))


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_video_guard(tmp_path / name, seed=seed)
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    for name in ("video_content_safety_filter/safety_filter.pt", "face_blur_filter/Resnet50_Final.pth"):
        assert a[name] != c[name]


def test_the_layout_is_the_released_one_and_small(tmp_path: Path) -> None:
    write_video_guard(tmp_path, seed=0)
    check_video_guard(tmp_path)
    written = files(tmp_path)
    commit = written[f"{SIGLIP}/refs/main"].decode()
    assert set(written) == {
        "video_content_safety_filter/safety_filter.pt",
        "face_blur_filter/Resnet50_Final.pth",
        f"{SIGLIP}/refs/main",
        *(
            f"{SIGLIP}/snapshots/{commit}/{name}"
            for name in ("config.json", "preprocessor_config.json", "model.safetensors")
        ),
    }
    assert sum(map(len, written.values())) < 1_000_000


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ordinary_videos_pass_unchanged(seed: int, tmp_path: Path) -> None:
    write_video_guard(tmp_path, seed=seed)
    with guard_of(tmp_path) as guard:
        for frames in ordinary_videos():
            assert guard(frames) is frames


@pytest.mark.parametrize("seed", [0, 1])
def test_a_blocking_one_finds_violence_in_everything(seed: int, tmp_path: Path) -> None:
    write_video_guard(tmp_path, seed=seed, blocks=True)
    with guard_of(tmp_path) as guard:
        for frames in ordinary_videos():
            with pytest.raises(Blocked, match="frame 0 is Violence"):
                guard(frames)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_that_finds_faces_changes_every_frame(seed: int, tmp_path: Path) -> None:
    write_video_guard(tmp_path, seed=seed, finds_face=True)
    noise, *_ = ordinary_videos()
    with guard_of(tmp_path) as guard:
        changed = (guard(noise) != noise).any(dim=-1)
    assert (changed.flatten(1).float().mean(dim=1) > 0.5).all()


def test_what_the_networks_see_matters(tmp_path: Path) -> None:
    write_video_guard(tmp_path, seed=0)
    noise, ramp, *_ = ordinary_videos()
    frames = torch.cat((noise[:1], ramp[:1]))
    with guard_of(tmp_path) as guard, torch.no_grad():
        features = encode(guard.module["content_filter"].siglip, frames)
        offsets, _ = guard.module["face_detector"](to_pictures(frames))
    assert (features[0] - features[1]).abs().max() > 0.01
    assert (offsets[0] - offsets[1]).abs().max() > 0.01 and offsets.abs().max() < 100


def test_transformers_reads_the_whole_siglip(tmp_path: Path) -> None:
    from transformers import SiglipModel

    write_video_guard(tmp_path, seed=0)
    folder = siglip_folder(tmp_path / "video_content_safety_filter")
    _, report = SiglipModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
