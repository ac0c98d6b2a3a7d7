"""The video guard: unsafe videos are blocked, faces in the others are pixelated.

T frames, H W rows and columns.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.stages.base import Stage
from cosmos_nemo.stages.guardrail import content_filter, face_blur
from cosmos_nemo.stages.guardrail.outcome import Blocked, GuardrailUnavailable

logger = logging.getLogger(__name__)


class VideoGuard(Stage):
    """Looks at every frame, first for unsafe content and then for faces (spec/predict1-diffusion.md, 7.4)."""

    name: ClassVar[str] = "video_guard"

    def __init__(
        self,
        *,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
        prefetches: bool = False,
        frames_at_once: int = 16,
    ) -> None:
        """folder: the released guardrail, with video_content_safety_filter/ and face_blur_filter/.

        dtype: SigLIP's. The released classifier is used with float32 upstream; bfloat16 is faster, but its
        rounding may turn a close verdict either way. The classifier and the face detector are always float32.
        """
        super().__init__(device=device, offload=offload, prefetches=prefetches)
        if frames_at_once < 1:
            raise ValueError(f"frames_at_once is {frames_at_once}: at least one frame is looked at at once")
        self.folder, self.dtype, self.frames_at_once = folder, dtype, frames_at_once

    def check(self) -> None:
        """CheckpointError unless the folder holds everything that `build` needs."""
        check_video_guard(self.folder)

    def build(self) -> nn.ModuleDict:
        check_video_guard(self.folder)
        return nn.ModuleDict(
            {
                "content_filter": content_filter.build_content_filter(
                    self.folder / content_filter.FOLDER, device=self.device, dtype=self.dtype
                ),
                "face_detector": face_blur.build_face_detector(
                    self.folder / face_blur.FOLDER, device=self.device
                ),
            }
        )

    def __call__(self, frames_THWC: Tensor) -> Tensor:
        """The frames without recognisable faces; the very same tensor if there was none.

        Frames are RGB uint8 0..255 [T, H, W, 3] on the CPU and never changed in place. Blocked at the first
        frame, counted from 0, that is not safe; GuardrailUnavailable if anything at all goes wrong, out of
        memory included, so that no failure counts as a pass.
        """
        try:
            _check_frames(frames_THWC)
            self._refuse_unsafe(frames_THWC)
            return self._without_faces(frames_THWC)
        except (Blocked, GuardrailUnavailable):
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else "no message"
            raise GuardrailUnavailable(
                f"the video guard failed ({type(error).__name__}: {reason})"
            ) from error

    def _refuse_unsafe(self, frames_THWC: Tensor) -> None:
        for first, group_BHWC in self._groups(frames_THWC):
            verdicts = self._part("content_filter")(group_BHWC).tolist()
            assert len(verdicts) == len(group_BHWC), f"{len(verdicts)} verdicts on {len(group_BHWC)} frames"
            for number, verdict in enumerate(verdicts, start=first):
                if verdict != content_filter.SAFE:
                    found = content_filter.CLASSES[verdict]
                    raise Blocked("video content filter", f"frame {number} is {found}")

    def _without_faces(self, frames_THWC: Tensor) -> Tensor:
        cleaned_THWC, num_changed = frames_THWC, 0
        for first, group_BHWC in self._groups(frames_THWC):
            faces = face_blur.find_faces(self._part("face_detector"), group_BHWC)
            assert len(faces) == len(group_BHWC), f"{len(faces)} answers for {len(group_BHWC)} frames"
            for number, boxes_N4 in enumerate(faces, start=first):
                if len(boxes_N4) == 0:
                    continue
                if num_changed == 0:
                    cleaned_THWC = frames_THWC.clone()
                face_blur.pixelate(cleaned_THWC[number], boxes_N4)
                num_changed += 1
        if num_changed:
            logger.info("faces pixelated in %d of %d frames", num_changed, len(frames_THWC))
        return cleaned_THWC

    def _groups(self, frames_THWC: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Frames on the device with the number of the first, so that no second whole video is ever held."""
        for first in range(0, len(frames_THWC), self.frames_at_once):
            yield first, frames_THWC[first : first + self.frames_at_once].to(self.device)

    def _part(self, name: str) -> nn.Module:
        assert isinstance(self.module, nn.ModuleDict), "enter the stage first"
        return self.module[name]


def check_video_guard(folder: Path) -> None:
    """CheckpointError unless `folder` holds a complete content filter and face detector.

    Judged from headers. But for a Resnet50_Final.pth in torch's old format, before zip archives, as it is
    released: that has none, and its 110 MB are read.
    """
    for part in (content_filter.FOLDER, face_blur.FOLDER):
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder} is no complete guardrail: it has no folder {part}.")
    content_filter.check_content_filter(folder / content_filter.FOLDER)
    face_blur.check_face_detector(folder / face_blur.FOLDER)


def _check_frames(frames_THWC: Tensor) -> None:
    shape = tuple(frames_THWC.shape)
    if frames_THWC.dtype != torch.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise GuardrailUnavailable(
            f"the video guard judges frames uint8 [T, H, W, 3], and was given {frames_THWC.dtype} {shape}"
        )
