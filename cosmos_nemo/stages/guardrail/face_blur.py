"""Faces in a video made unrecognisable: found by RetinaFace, then pixelated.

B frames, H W rows and columns, P prior boxes, N faces.
"""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.models.face_detector.boxes import decode, non_maximum_suppression, prior_boxes
from cosmos_nemo.models.face_detector.model import FaceDetector, FaceDetectorShape, to_pictures
from cosmos_nemo.stages.guardrail.filling import check_same_tensors, fill
from cosmos_nemo.stages.guardrail.outcome import GuardrailUnavailable

FOLDER = "face_blur_filter"
DETECTOR_FILE = "Resnet50_Final.pth"
_PREFIX = "module."
"""Left by the DataParallel that the released detector was trained in."""
_LANDMARKS = "LandmarkHead."

# Upstream's, of detect.py of the released detector but for the confidence (spec/predict1-diffusion.md, 7.4).
_MIN_SCORE = 0.7
_MAX_OVERLAP = 0.4
_MAX_CANDIDATES = 5000
_MAX_FACES = 750
_MIN_SIDE = 20
_BLOCKS = 5
_FAR = 1e6
"""Pixels from a picture's corner, farther than any: numbers beyond do not fit an integer."""


@torch.no_grad()
def find_faces(detector: nn.Module, frames_BHWC: Tensor) -> list[Tensor]:
    """For each RGB frame 0..255 the boxes of its faces, int64 [N, 4] on the CPU, most certain first.

    Columns left, top, right, bottom in pixels, the last two exclusive; inside the frame and not empty. Faces
    of less than 20 pixels are left out. GuardrailUnavailable if the detector's numbers make no sense.
    """
    height, width = frames_BHWC.shape[1:3]
    offsets_BP4, scores_BP = detector(to_pictures(frames_BHWC))
    if not (torch.isfinite(offsets_BP4).all() and torch.isfinite(scores_BP).all()):
        raise GuardrailUnavailable(
            "the face detector gave a NaN or an infinite number: its weights may be damaged"
        )
    priors_P4 = prior_boxes(height, width).to(offsets_BP4.device)
    scale_4 = offsets_BP4.new_tensor([width, height, width, height])
    boxes_BP4 = decode(offsets_BP4, priors_P4) * scale_4
    return [
        _faces(boxes_P4, scores_P, height=height, width=width)
        for boxes_P4, scores_P in zip(boxes_BP4, scores_BP, strict=True)
    ]


def pixelate(frame_HWC: Tensor, boxes_N4: Tensor) -> None:
    """Replaces each box of a uint8 frame, in place and in turn, by 5x5 blocks of one colour.

    A block's colour is interpolated between the four pixels around its middle, as OpenCV's resize does.
    """
    for left, top, right, bottom in boxes_N4.tolist():
        region_HWC = frame_HWC[top:bottom, left:right]
        region_CHW = rearrange(region_HWC, "h w c -> c h w").float()
        blocks_1CHW = F.interpolate(region_CHW[None], size=(_BLOCKS, _BLOCKS), mode="bilinear")
        blocks_HWC = rearrange(blocks_1CHW.round().to(torch.uint8), "1 c h w -> h w c")
        rows = torch.arange(bottom - top) * _BLOCKS // (bottom - top)
        columns = torch.arange(right - left) * _BLOCKS // (right - left)
        region_HWC.copy_(blocks_HWC[rows][:, columns])


def check_face_detector(folder: Path) -> None:
    """CheckpointError unless `folder` holds a detector."""
    _open_detector(folder)


def build_face_detector(folder: Path, *, device: torch.device) -> FaceDetector:
    """Filled on the device, float32."""
    checkpoint, shape = _open_detector(folder)
    with torch.device("meta"):
        detector = FaceDetector(shape)
    detector = detector.to_empty(device=device).eval().requires_grad_(False)
    fill(detector, checkpoint)
    return detector


def detector_shape(checkpoint: Checkpoint) -> FaceDetectorShape:
    """The widths that the tensors of a RetinaFace with a ResNet body have; CheckpointError for any other."""
    blocks = {layer: f"body.layer{layer}." for layer in (1, 2, 3, 4)}
    names = checkpoint.names()
    needed = [
        "body.conv1.weight",
        "fpn.merge1.0.weight",
        *(f"{block}0.conv1.weight" for block in blocks.values()),
    ]
    if missing := [name for name in needed if name not in names or len(checkpoint.shape(name)) != 4]:
        raise CheckpointError(
            f"{checkpoint.path} is no RetinaFace with a ResNet body: it lacks the convolution {missing[0]}. "
            f"{DETECTOR_FILE} of the guardrail's own repository is needed."
        )
    return FaceDetectorShape(
        stem=checkpoint.shape("body.conv1.weight")[0],
        widths=tuple(checkpoint.shape(f"{block}0.conv1.weight")[0] for block in blocks.values()),
        depths=tuple(
            sum(name.startswith(block) and name.endswith(".conv1.weight") for name in names)
            for block in blocks.values()
        ),
        pyramid=checkpoint.shape("fpn.merge1.0.weight")[0],
    )


def _faces(boxes_P4: Tensor, scores_P: Tensor, *, height: int, width: int) -> Tensor:
    certain = scores_P > _MIN_SCORE
    boxes_N4, scores_N = boxes_P4[certain].cpu(), scores_P[certain].cpu()
    if not torch.isfinite(boxes_N4).all():
        raise GuardrailUnavailable("the face detector gave a box without bounds: its weights may be damaged")
    order = scores_N.argsort(descending=True, stable=True)[:_MAX_CANDIDATES]
    boxes_N4, scores_N = boxes_N4[order], scores_N[order]
    kept = non_maximum_suppression(boxes_N4, scores_N, max_overlap=_MAX_OVERLAP)[:_MAX_FACES]
    left, top, right, bottom = boxes_N4[kept].clamp(-_FAR, _FAR).long().unbind(dim=1)
    large = (right - left >= _MIN_SIDE) & (bottom - top >= _MIN_SIDE)
    columns = left.clamp(0, width), right.clamp(0, width)
    rows = top.clamp(0, height), bottom.clamp(0, height)
    inside = (columns[0] < columns[1]) & (rows[0] < rows[1])
    return torch.stack((columns[0], rows[0], columns[1], rows[1]), dim=1)[large & inside]


def _open_detector(folder: Path) -> tuple[Checkpoint, FaceDetectorShape]:
    checkpoint = open_checkpoint(folder / DETECTOR_FILE)
    if all(name.startswith(_PREFIX) for name in checkpoint.names()):
        checkpoint = checkpoint.under(_PREFIX)
    shape = detector_shape(checkpoint)
    with torch.device("meta"):
        check_same_tensors(FaceDetector(shape), checkpoint, ignored=(_LANDMARKS,))
    return checkpoint, shape
