import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_nemo.models.face_detector.boxes import prior_boxes
from cosmos_nemo.models.face_detector.model import FaceDetector, FaceDetectorShape, to_pictures

HERE = Path(__file__).parent
NANO = {"stem": 8, "widths": (2, 4, 8, 16)}


def seeded_weights(state: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """The weights behind the reference's numbers (README.md)."""
    draw, weights = np.random.RandomState(seed), {}
    for name in sorted(state):
        shape = tuple(state[name].shape)
        if name.endswith("num_batches_tracked"):
            continue
        values = np.asarray(draw.standard_normal(shape))
        if len(shape) == 4:
            values *= math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = 1 + values**2
        elif name.endswith("weight"):
            values = (0.3 if "bn3" in name else 1) + 0.1 * values
        else:
            values *= 0.1
        if name == "body.bn1.running_var":
            values *= 5000
        weights[name] = torch.from_numpy(values).float()
    return weights


def seeded_frames() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (2, 72, 100, 3)).astype(np.uint8))


def nano(pyramid: int = 16) -> FaceDetector:
    detector = FaceDetector(FaceDetectorShape(**NANO, pyramid=pyramid)).eval().requires_grad_(False)
    weights = seeded_weights(detector.state_dict(), seed=pyramid)
    left_out = detector.load_state_dict(weights, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in left_out)
    return detector


def test_the_tensors_are_those_of_the_released_detector_without_its_landmarks() -> None:
    reference = json.loads((HERE / "resnet50_tensors.json").read_text())
    expected = {name: tuple(shape) for name, shape in reference.items() if "LandmarkHead" not in name}
    with torch.device("meta"):
        state = FaceDetector(FaceDetectorShape()).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    assert len(reference) == 456


@pytest.mark.parametrize("pyramid", [16, 68])
def test_a_narrow_detector_gives_the_numbers_of_the_reference(pyramid: int) -> None:
    reference = load_file(HERE / "retinaface_nano.safetensors")
    offsets, scores = nano(pyramid)(to_pictures(seeded_frames()))
    expected = reference[f"offsets_{pyramid}"]
    torch.testing.assert_close(offsets, expected, atol=2e-5 * float(expected.std()), rtol=1e-5)
    torch.testing.assert_close(scores, reference[f"scores_{pyramid}"], atol=1e-5, rtol=0)
    assert 0.3 < expected.std() < 3 and reference[f"scores_{pyramid}"].std() > 0.1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 64), (71, 97), (8, 40), (1, 1)])
def test_there_is_one_answer_for_each_prior_whatever_the_size(height: int, width: int) -> None:
    frames = torch.zeros(3, height, width, 3, dtype=torch.uint8)
    offsets, scores = nano()(to_pictures(frames))
    assert offsets.shape == (3, len(prior_boxes(height, width)), 4)
    assert scores.shape == offsets.shape[:2]


def test_a_frame_is_judged_the_same_alone_and_in_company() -> None:
    detector, pictures = nano(), to_pictures(seeded_frames())
    together, _ = detector(pictures)
    alone = torch.cat([detector(picture[None])[0] for picture in pictures])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_pictures_are_blue_green_red_without_the_mean() -> None:
    frames = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(2, 4, 5, 3)
    pictures = to_pictures(frames)
    assert pictures.shape == (2, 3, 4, 5) and pictures.dtype == torch.float32
    assert pictures[1, :, 2, 3].tolist() == [30 - 104, 20 - 117, 10 - 123]
