import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.guardrail.outcome import Blocked, GuardrailUnavailable
from cosmos_nemo.stages.guardrail.video_guard import VideoGuard, check_video_guard
from cosmos_nemo.tools.standin_video_guard import write_video_guard

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def guards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guardrails")
    write_video_guard(folder / "passes", seed=0)
    write_video_guard(folder / "blocks", seed=0, blocks=True)
    write_video_guard(folder / "finds_face", seed=0, finds_face=True)
    return folder


def guard(folder: Path, **options: object) -> VideoGuard:
    return VideoGuard(folder=folder, device=CPU, **options)  # type: ignore[arg-type]


def video(num_frames: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 256, (num_frames, 48, 64, 3), generator=draw, dtype=torch.uint8)


class FakeFilter(nn.Module):
    """Gives frame i the class `verdicts[i]`, counted over all calls, and keeps the frames it saw."""

    def __init__(self, *verdicts: int) -> None:
        super().__init__()
        self.verdicts, self.seen = list(verdicts), []

    def forward(self, frames_BHWC: Tensor) -> Tensor:
        first = sum(map(len, self.seen))
        self.seen.append(frames_BHWC)
        return torch.tensor(self.verdicts[first : first + len(frames_BHWC)])


class FakeDetector(nn.Module):
    """No face, but for the frames whose first pixel is red 255: one that fills a quarter of the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, pictures_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(pictures_BCHW)
        num_priors = 2 * (6 * 8 + 3 * 4 + 2 * 2)
        offsets, scores = (
            torch.zeros(len(pictures_BCHW), num_priors, 4),
            torch.zeros(len(pictures_BCHW), num_priors),
        )
        scores[pictures_BCHW[:, 2, 0, 0] == 255 - 123, 3 * 16 + 3 * 2 + 1] = 0.9  # 32 pixels around (28, 28)
        offsets[..., :2] = 0.5 / 3.2  # and half a pixel more, so that no rounding decides where it ends
        return offsets, scores


class FailingModel(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Tensor) -> Tensor:
        raise self.error


def fake(*verdicts: int, frames_at_once: int = 16, **parts: nn.Module) -> VideoGuard:
    """A guard that is entered already."""

    class FakeGuard(VideoGuard):
        def build(self) -> nn.ModuleDict:
            made = {"content_filter": FakeFilter(*verdicts), "face_detector": FakeDetector()}
            return nn.ModuleDict(made | parts)

    stage = FakeGuard(folder=Path("none"), device=CPU, frames_at_once=frames_at_once)
    return stage.__enter__()


def test_a_safe_video_without_faces_is_returned_itself(guards: Path) -> None:
    frames = video()
    before = frames.clone()
    with guard(guards / "passes") as stage:
        assert stage(frames) is frames
    assert torch.equal(frames, before)


def test_an_unsafe_video_is_blocked(guards: Path) -> None:
    with guard(guards / "blocks") as stage, pytest.raises(Blocked) as error:
        stage(video())
    assert (error.value.by, error.value.reason) == ("video content filter", "frame 0 is Violence")


def test_faces_are_pixelated_in_a_copy(guards: Path) -> None:
    frames = video()
    before = frames.clone()
    with guard(guards / "finds_face") as stage:
        cleaned = stage(frames)
    assert cleaned.shape == frames.shape and cleaned.dtype == torch.uint8
    assert (cleaned != before).flatten(1).any(dim=1).all()
    assert torch.equal(frames, before)


@pytest.mark.parametrize("frames_at_once", [1, 4, 16])
def test_the_first_frame_that_is_not_safe_is_named(frames_at_once: int) -> None:
    stage = fake(*[0] * 12, 2, 0, 5, frames_at_once=frames_at_once)
    with pytest.raises(Blocked, match="frame 12 is Violence"):
        stage(video(15))
    assert stage.module["face_detector"].seen == []


@pytest.mark.parametrize("frames_at_once", [1, 2, 3, 7, 16])
def test_every_frame_is_seen_once_by_both_a_few_at_a_time(frames_at_once: int) -> None:
    stage, frames = fake(*[0] * 7, frames_at_once=frames_at_once), video(7)
    assert stage(frames) is frames
    for seen in (stage.module["content_filter"].seen, stage.module["face_detector"].seen):
        assert [len(group) for group in seen] == [
            min(frames_at_once, 7 - first) for first in range(0, 7, frames_at_once)
        ]
    assert torch.equal(torch.cat(stage.module["content_filter"].seen), frames)


@pytest.mark.parametrize("frames_at_once", [1, 2, 16])
def test_only_frames_with_a_face_change_and_only_there(frames_at_once: int) -> None:
    stage, frames = fake(*[0] * 5, frames_at_once=frames_at_once), video(5)
    frames[:, 0, 0, 0] = 0
    frames[[1, 4], 0, 0, 0] = 255
    cleaned = stage(frames)
    changed = (cleaned != frames).any(dim=-1)
    assert changed.flatten(1).any(dim=1).tolist() == [False, True, False, False, True]
    rows, columns = changed[1].nonzero().unbind(dim=1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 43, 12, 43)
    face = cleaned[4, 12:44, 12:44]
    assert len(face.reshape(-1, 3).unique(dim=0)) == 25


@pytest.mark.parametrize("part", ["content_filter", "face_detector"])
@pytest.mark.parametrize(
    "error", [RuntimeError("broken\nrest"), torch.OutOfMemoryError("no memory"), ValueError(), KeyError("x")]
)
def test_a_failure_inside_is_no_pass(part: str, error: Exception) -> None:
    stage = fake(*[0] * 5, **{part: FailingModel(error)})
    with pytest.raises(GuardrailUnavailable, match=type(error).__name__) as raised:
        stage(video())
    assert raised.value.__cause__ is error and "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [Blocked("video content filter", "x"), GuardrailUnavailable("why")])
def test_an_outcome_raised_inside_comes_out_as_it_is(error: Exception) -> None:
    stage = fake(content_filter=FailingModel(error))
    with pytest.raises(type(error)) as raised:
        stage(video())
    assert raised.value is error


def test_an_interrupt_is_no_outcome() -> None:
    stage = fake(content_filter=FailingModel(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stage(video())


@pytest.mark.parametrize("verdicts", [[], [0, 0], [0, 0, 0, 0, 7]])
def test_verdicts_that_do_not_fit_are_no_pass(verdicts: list[int]) -> None:
    with pytest.raises(GuardrailUnavailable):
        fake(*verdicts)(video())


@pytest.mark.parametrize(
    "frames",
    [
        video().float(),
        video()[0],
        video()[:0],
        video().permute(0, 3, 1, 2),
        torch.zeros(2, 0, 8, 3, dtype=torch.uint8),
    ],
)
def test_what_is_no_video_cannot_be_judged(frames: Tensor) -> None:
    with pytest.raises(GuardrailUnavailable, match=r"uint8 \[T, H, W, 3\]"):
        fake(*[0] * 9)(frames)


def test_a_guard_that_was_not_entered_judges_nothing(guards: Path) -> None:
    stage = guard(guards / "passes", offload=True)
    with pytest.raises(GuardrailUnavailable, match="enter the stage first"):
        stage(video())
    with stage:
        stage(video())
    with pytest.raises(GuardrailUnavailable):  # its weights are parked
        stage(video())


def test_no_frames_at_once_is_refused(guards: Path) -> None:
    with pytest.raises(ValueError, match="frames_at_once is 0"):
        guard(guards / "passes", frames_at_once=0)


def test_an_offloaded_guard_is_parked_on_leaving_and_works_again(guards: Path) -> None:
    stage, frames = guard(guards / "finds_face", offload=True), video()
    with stage:
        first = stage(frames)
        tensors = [*stage.module.parameters(), *stage.module.buffers()]
        sizes = [tensor.numel() for tensor in tensors]
    assert all(tensor.numel() == 0 for tensor in tensors)
    with stage:
        assert [tensor.numel() for tensor in tensors] == sizes
        assert torch.equal(stage(frames), first)


def test_the_stage_is_parked_when_a_video_is_blocked(guards: Path) -> None:
    stage = guard(guards / "blocks", offload=True)
    with pytest.raises(Blocked), stage:
        stage(video())
    assert all(parameter.numel() == 0 for parameter in stage.module.parameters())


def test_only_siglip_takes_the_dtype(guards: Path) -> None:
    frames = video()
    with guard(guards / "passes", dtype=torch.bfloat16) as stage:
        assert stage(frames) is frames
        parts = {
            name: {parameter.dtype for parameter in stage.module.get_submodule(name).parameters()}
            for name in ("content_filter.siglip", "content_filter.classifier", "face_detector")
        }
    assert list(parts.values()) == [{torch.bfloat16}, {torch.float32}, {torch.float32}]


@pytest.fixture
def folder(guards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(guards / "passes", tmp_path / "guardrail"))


@pytest.mark.parametrize("part", ["content_filter.siglip", "content_filter.classifier", "face_detector"])
def test_damaged_weights_are_no_pass(part: str, folder: Path) -> None:
    with guard(folder) as stage:
        for parameter in stage.module.get_submodule(part).parameters():
            parameter.fill_(float("nan"))
        with pytest.raises(GuardrailUnavailable, match="NaN"):
            stage(video())


def test_a_complete_folder_passes_and_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_nemo.checkpoint.reader import Checkpoint

    def refuse(*_: object) -> Tensor:
        raise AssertionError("read")

    monkeypatch.setattr(Checkpoint, "read", refuse)
    check_video_guard(folder)
    guard(folder).check()
    with pytest.raises(AssertionError, match="read"), guard(folder):
        pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no folder video_content_safety_filter"),
        (lambda folder: shutil.rmtree(folder / "face_blur_filter"), "no folder face_blur_filter"),
        (lambda folder: (folder / "face_blur_filter" / "Resnet50_Final.pth").unlink(), "does not exist"),
        (
            lambda folder: (folder / "video_content_safety_filter" / "safety_filter.pt").unlink(),
            "does not exist",
        ),
        (lambda folder: next(folder.rglob("model.safetensors")).unlink(), "holds no checkpoint"),
    ],
)
def test_an_incomplete_folder_is_refused_before_anything_is_read(
    damage: Callable[[Path], None], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        check_video_guard(folder)
    stage = guard(folder)
    with pytest.raises(CheckpointError, match=message), stage:
        pass
    assert stage.module is None
