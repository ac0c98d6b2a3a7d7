import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.tools.checks import Options
from cosmos_nemo.tools.checks.predict2_preprocess import check

GOLDEN = Path(__file__).parents[3] / "golden" / "predict2_preprocess_a.safetensors"
OPTIONS = Options(
    folder=GOLDEN.parent,
    weights=None,
    backend="torch",
    dtype=torch.float32,
    device=torch.device("cpu"),
)


@pytest.fixture
def case() -> dict[str, Any]:
    return json.loads(GOLDEN.with_suffix(".json").read_text())


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def test_every_output_is_made_and_is_that_of_the_reference(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    made = dict(check(case, tensors, OPTIONS))
    assert {f"outputs.{name}" for name in made} == {name for name in tensors if name.startswith("outputs.")}
    for name, values in made.items():
        wanted = tensors[f"outputs.{name}"]
        assert values.dtype == wanted.dtype, name
        level = 1 / 127.5 if name.startswith("normalized_") else 1
        assert (values.double() - wanted.double()).abs().max() <= level, name


def test_lengths_sizes_and_numbers_of_kept_frames_are_those_of_the_file(
    case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    case["num_video_frames"] = {"image": 2, "clip": 12}
    case["cases"] = [{"target_h": 16, "target_w": 64}]
    tensors["outputs.video_from_clip_0_cond3"] = torch.zeros(())
    made = dict(check(case, tensors, OPTIONS))
    kept = {f"video_from_clip_0_cond{latents}": 12 for latents in (1, 2, 3)}
    assert {name: values.shape[2] for name, values in made.items()} == {
        "video_0": 2,
        "normalized_0": 1,
        **kept,
    }
    assert all(values.shape[:2] == (1, 3) and values.shape[3:] == (16, 64) for values in made.values())
    video = made["video_from_clip_0_cond3"]
    changes = (video[:, :, 1:] != video[:, :, :-1]).flatten(3).any(-1).flatten(0, 1).any(0)
    assert changes.tolist() == [True] * 8 + [False] * 3  # 9 frames kept, the last three times more


def test_after_a_picture_all_is_black(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    video = dict(check(case, tensors, OPTIONS))["video_1"]
    assert video[:, :, 0].any() and not video[:, :, 1:].any()


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("image_0", ["normalized_0", "video_0"]),
        ("clip_1", ["video_from_clip_1_cond1", "video_from_clip_1_cond2"]),
    ],
)
def test_a_changed_frame_shows_where_it_is_used(
    name: str, outputs: list[str], case: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    plain = dict(check(case, tensors, OPTIONS))
    tensors[f"inputs.{name}"] = 255 - tensors[f"inputs.{name}"]
    changed = dict(check(case, tensors, OPTIONS))
    assert sorted(key for key in plain if not torch.equal(plain[key], changed[key])) == outputs


def test_a_missing_picture_is_named(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del tensors["inputs.image_1"]
    with pytest.raises(KeyError, match="image_1"):
        list(check(case, tensors, OPTIONS))
