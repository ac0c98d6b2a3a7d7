import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.reader import CheckpointError, open_checkpoint
from cosmos_nemo.models.face_detector.boxes import prior_boxes
from cosmos_nemo.models.face_detector.model import FaceDetectorShape
from cosmos_nemo.stages.guardrail.face_blur import (
    DETECTOR_FILE,
    FOLDER,
    build_face_detector,
    check_face_detector,
    detector_shape,
    find_faces,
    pixelate,
)
from cosmos_nemo.stages.guardrail.outcome import GuardrailUnavailable
from cosmos_nemo.tools.standin_video_guard import write_video_guard

CPU = torch.device("cpu")
HEIGHT, WIDTH = 120, 160

Face = tuple[float, float, float, float, float]
"""left, top, right, bottom, score"""


class FakeDetector(nn.Module):
    """Answers with the given faces of each frame, as the offsets of as many priors."""

    def __init__(self, *frames: list[Face]) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, pictures_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        height, width = pictures_BCHW.shape[-2:]
        priors = prior_boxes(height, width).double()
        offsets = torch.zeros(len(self.frames), len(priors), 4)
        scores = torch.zeros(len(self.frames), len(priors))
        for number, faces in enumerate(self.frames):
            for i, (left, top, right, bottom, score) in enumerate(faces):
                x, y, w, h = priors[i].tolist()
                centre_x, centre_y = (left + right) / 2 / width, (top + bottom) / 2 / height
                offsets[number, i] = torch.tensor(
                    [
                        (centre_x - x) / w / 0.1,
                        (centre_y - y) / h / 0.1,
                        math.log((right - left) / width / w) / 0.2,
                        math.log((bottom - top) / height / h) / 0.2,
                    ]
                )
                scores[number, i] = score
        return offsets, scores


def noise(num_frames: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 256, (num_frames, HEIGHT, WIDTH, 3), generator=draw, dtype=torch.uint8)


def found(*faces: Face) -> list[list[int]]:
    return find_faces(FakeDetector(list(faces)), noise())[0].tolist()


def test_a_face_is_found_where_it_is_in_whole_pixels() -> None:
    assert found((10.5, 20.9, 50.2, 80.7, 0.9)) == [[10, 20, 50, 80]]


def test_each_frame_has_its_own_faces() -> None:
    detector = FakeDetector([(10.5, 20.5, 50.5, 80.5, 0.9)], [], [(1.5, 2.5, 31.5, 32.5, 0.8)])
    boxes = find_faces(detector, noise(3))
    assert [box.tolist() for box in boxes] == [[[10, 20, 50, 80]], [], [[1, 2, 31, 32]]]
    assert all(box.dtype == torch.long and box.shape[1:] == (4,) for box in boxes)


@pytest.mark.parametrize(("score", "count"), [(0.69, 0), (0.71, 1)])
def test_only_what_is_a_face_with_more_than_70_percent_counts(score: float, count: int) -> None:
    assert len(found((10.5, 20.5, 50.5, 80.5, score))) == count


@pytest.mark.parametrize(
    ("width", "height", "count"), [(20, 20, 1), (19, 40, 0), (40, 19, 0), (19, 19, 0), (21, 20, 1)]
)
def test_a_face_less_than_20_pixels_wide_or_high_is_ignored(width: int, height: int, count: int) -> None:
    assert len(found((10.5, 10.5, 10.5 + width, 10.5 + height, 0.9))) == count


@pytest.mark.parametrize(
    ("face", "box"),
    [
        ((-9.5, -19.5, 30.5, 40.5, 0.9), [0, 0, 30, 40]),
        ((150.5, 100.5, 190.5, 150.5, 0.9), [150, 100, 160, 120]),
        ((-30.5, 50.5, 2.5, 90.5, 0.9), [0, 50, 2, 90]),  # 2 of its 32 columns are to be seen
        ((-50.5, -50.5, 300.5, 300.5, 0.9), [0, 0, 160, 120]),
    ],
)
def test_a_face_partly_outside_is_clipped_but_measured_whole(face: Face, box: list[int]) -> None:
    assert found(face) == [box]


@pytest.mark.parametrize(
    "face",
    [(-60.5, 10.5, -20.5, 60.5, 0.9), (170.5, 10.5, 220.5, 60.5, 0.9), (10.5, 125.5, 60.5, 190.5, 0.9)],
)
def test_a_face_outside_the_frame_is_none(face: Face) -> None:
    assert found(face) == []


def test_of_two_boxes_around_one_face_the_more_certain_is_kept() -> None:
    assert found((10.5, 10.5, 60.5, 60.5, 0.8), (12.5, 12.5, 62.5, 62.5, 0.9)) == [[12, 12, 62, 62]]


@pytest.mark.parametrize(("shift", "count"), [(19, 1), (21, 1), (22, 2), (25, 2)])
def test_boxes_that_share_more_than_40_percent_are_one_face(shift: int, count: int) -> None:
    """Of 51 columns, both corner pixels counted: shares of 0.457, 0.417, 0.397 and 0.342."""
    first, second = (10.5, 10.5, 60.5, 60.5, 0.9), (10.5 + shift, 10.5, 60.5 + shift, 60.5, 0.8)
    assert len(found(first, second)) == count


def test_two_faces_that_touch_are_both_kept_most_certain_first() -> None:
    assert found((10.5, 10.5, 60.5, 60.5, 0.8), (50.5, 10.5, 100.5, 60.5, 0.9)) == [
        [50, 10, 100, 60],
        [10, 10, 60, 60],
    ]


def test_of_very_many_faces_the_750_most_certain_are_kept() -> None:
    frames = torch.zeros(1, 24 * 32, 24 * 32, 3, dtype=torch.uint8)
    corners = [(24 * column + 0.5, 24 * row + 0.5) for row in range(32) for column in range(32)]
    faces = [(x, y, x + 21, y + 21, 0.71 + 0.0002 * i) for i, (x, y) in enumerate(corners)]
    (boxes,) = find_faces(FakeDetector(faces), frames)
    assert len(boxes) == 750
    assert boxes[0].tolist() == [24 * 31, 24 * 31, 24 * 31 + 21, 24 * 31 + 21]


class BrokenDetector(FakeDetector):
    def __init__(self, *, offset: float = 0.0, score: float = 0.1) -> None:
        super().__init__([])
        self.offset, self.score = offset, score

    def forward(self, pictures_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        offsets, scores = super().forward(pictures_BCHW)
        offsets[0, 7, 2], scores[0, 7] = self.offset, self.score
        return offsets, scores


@pytest.mark.parametrize(
    "fault",
    [
        {"offset": math.nan},
        {"offset": math.inf},
        {"score": math.nan},
        {"offset": 1000.0, "score": 0.9},  # exp(200) does not fit
    ],
)
def test_numbers_that_make_no_sense_are_no_pass(fault: dict[str, float]) -> None:
    with pytest.raises(GuardrailUnavailable, match="face detector gave"):
        find_faces(BrokenDetector(**fault), noise())


def test_a_box_of_astronomic_size_covers_the_frame() -> None:
    assert find_faces(BrokenDetector(offset=400.0, score=0.9), noise())[0][0, [0, 2]].tolist() == [0, WIDTH]


def test_a_face_becomes_25_blocks_and_the_rest_stays_bit_identical() -> None:
    (frame,) = noise()
    before = frame.clone()
    pixelate(frame, torch.tensor([[10, 20, 50, 80]]))
    face, blocks = frame[20:80, 10:50], frame[20:80:12, 10:50:8]
    assert torch.equal(face, blocks.repeat_interleave(12, dim=0).repeat_interleave(8, dim=1))
    # A block of 12x8 pixels has the mean colour of the four in its middle.
    middle = before[20 + 24 + 5 : 20 + 24 + 7, 10 + 8 + 3 : 10 + 8 + 5].float().mean(dim=(0, 1))
    assert torch.equal(blocks[2, 1], middle.round().to(torch.uint8))
    outside = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    outside[20:80, 10:50] = False
    assert torch.equal(frame[outside], before[outside])
    assert (frame != before)[20:80, 10:50].any(dim=-1).float().mean() > 0.9


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [3, 4, 6, 60], [7, 9, 160, 120], [157, 20, 160, 41]])
def test_a_box_of_any_size_has_at_most_five_blocks_each_way(box: list[int]) -> None:
    (frame,) = noise()
    before = frame.clone()
    pixelate(frame, torch.tensor([box]))
    left, top, right, bottom = box
    face = frame[top:bottom, left:right]
    assert len(face.reshape(-1, 3).unique(dim=0)) <= 25
    assert (face[1:] != face[:-1]).flatten(1).any(dim=1).sum() <= 4
    assert (face[:, 1:] != face[:, :-1]).transpose(0, 1).flatten(1).any(dim=1).sum() <= 4
    frame[top:bottom, left:right] = before[top:bottom, left:right]
    assert torch.equal(frame, before)


def test_overlapping_boxes_are_pixelated_in_turn() -> None:
    (frame,) = noise()
    in_turn = frame.clone()
    first, second = torch.tensor([[10, 10, 60, 60]]), torch.tensor([[40, 30, 90, 80]])
    pixelate(in_turn, first)
    pixelate(in_turn, second)
    pixelate(frame, torch.cat((first, second)))
    assert torch.equal(frame, in_turn)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guardrail")
    write_video_guard(folder, seed=0)
    return folder / FOLDER


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "faces"))


def load(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / DETECTOR_FILE, weights_only=True)


def test_every_tensor_is_that_of_the_file(folder: Path) -> None:
    stored = load(folder)
    for i, name in enumerate(sorted(stored)):  # none is what a new network happens to have
        if stored[name].is_floating_point():
            stored[name] += 0.001 * i
        else:
            stored[name] += i
    torch.save(stored, folder / DETECTOR_FILE)
    check_face_detector(folder)
    state = build_face_detector(folder, device=CPU).state_dict()
    assert {f"module.{name}" for name in state} == {name for name in stored if "Landmark" not in name}
    assert all(torch.equal(tensor, stored[f"module.{name}"]) for name, tensor in state.items())


def test_the_built_detector_is_in_eval_mode_and_wants_no_gradients(folder: Path) -> None:
    detector = build_face_detector(folder, device=CPU)
    assert not any(module.training for module in detector.modules())
    assert not any(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize("form", ["torch's old format", "no module.", "no landmarks", "no batch counts"])
def test_other_forms_of_the_file_hold_the_same_detector(form: str, folder: Path) -> None:
    expected = build_face_detector(folder, device=CPU).state_dict()
    stored = load(folder)
    if form == "no module.":
        stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    elif form == "no landmarks":
        stored = {name: tensor for name, tensor in stored.items() if "LandmarkHead" not in name}
    elif form == "no batch counts":
        stored = {name: tensor for name, tensor in stored.items() if "num_batches" not in name}
    old = form == "torch's old format"
    torch.save(stored, folder / DETECTOR_FILE, _use_new_zipfile_serialization=not old)
    check_face_detector(folder)
    state = build_face_detector(folder, device=CPU).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_the_sizes_are_read_from_the_tensors(folder: Path) -> None:
    assert detector_shape(open_checkpoint(folder / DETECTOR_FILE).under("module.")) == FaceDetectorShape(
        stem=8, widths=(2, 4, 8, 16), depths=(3, 4, 6, 3), pyramid=16
    )


def damage(folder: Path, fault: str) -> None:
    path, stored = folder / DETECTOR_FILE, load(folder)
    match fault:
        case "missing":
            path.unlink()
            return
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1000])
            return
        case "truncated, old format":
            torch.save(stored, path, _use_new_zipfile_serialization=False)
            path.write_bytes(path.read_bytes()[:-1000])
            return
        case "no checkpoint":
            path.write_bytes(b"<!DOCTYPE html>")
            return
        case "another body":
            del stored["module.body.conv1.weight"]
        case "no convolution":
            stored["module.fpn.merge1.0.weight"] = torch.tensor(1.0)
        case "a tensor is missing":
            del stored["module.ssh2.conv5X5_1.1.running_var"]
        case "a tensor too many":
            stored["module.body.fc.weight"] = torch.zeros(2)
        case "another shape":
            stored["module.BboxHead.0.conv1x1.weight"] = torch.zeros(12, 16, 1, 1)
    torch.save(stored, path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "does not exist"),
        ("truncated", "truncated or damaged"),
        ("truncated, old format", "truncated or damaged"),
        ("no checkpoint", "no file of torch.save"),
        ("another body", "no RetinaFace with a ResNet body: it lacks the convolution body.conv1.weight"),
        ("no convolution", "it lacks the convolution fpn.merge1.0.weight"),
        ("a tensor is missing", "1 of .* missing, first: ssh2.conv5X5_1.1.running_var"),
        ("a tensor too many", "belong to another network, first: body.fc.weight"),
        ("another shape", r"BboxHead.0.conv1x1.weight is \(12, 16, 1, 1\), not \(8, 16, 1, 1\)"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(fault: str, message: str, folder: Path) -> None:
    damage(folder, fault)
    with pytest.raises(CheckpointError, match=message):
        check_face_detector(folder)
    with pytest.raises(CheckpointError, match=message):
        build_face_detector(folder, device=CPU)
