"""The video content filter: SigLIP's features of a frame, and a small classifier that names what they show.

B frames, H W rows and columns, D width of the features.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.stages.guardrail.filling import check_same_tensors, fill
from cosmos_nemo.stages.guardrail.outcome import GuardrailUnavailable
from cosmos_nemo.stages.guardrail.siglip import build_siglip, check_siglip, encode, siglip_folder

CLASSES = ("Safe", "Sexual_Content", "Violence", "Drugs", "Child_Abuse", "Hate_and_Harassment", "Self-Harm")
"""In the order of the classifier's outputs (spec/predict1-diffusion.md, 7.4)."""
SAFE = 0

FOLDER = "video_content_safety_filter"
CLASSIFIER_FILE = "safety_filter.pt"
_LINEARS = ("network.layers.0.weight", "network.layers.3.weight", "network.layers.6.weight")


class SafetyClassifier(nn.Module):
    """Features [B, D] to logits [B, 7] of CLASSES, in the names of the released file."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        """widths: D and the two hidden ones, 1152, 512 and 256 as released."""
        super().__init__()
        width, first, second = widths
        layers = nn.Sequential(
            nn.Linear(width, first),
            nn.BatchNorm1d(first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.BatchNorm1d(second),
            nn.ReLU(),
            nn.Linear(second, len(CLASSES)),
        )
        self.network = nn.ModuleDict({"layers": layers})

    def forward(self, features_BD: Tensor) -> Tensor:
        return self.network["layers"](features_BD)


class ContentFilter(nn.Module):
    """RGB frames 0..255 [B, H, W, 3] on its device to the index of each one's class, int64 [B].

    GuardrailUnavailable if any score is no number: a damaged file must not pass a video.
    """

    def __init__(self, siglip: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.siglip, self.classifier = siglip, classifier

    @torch.no_grad()
    def forward(self, frames_BHWC: Tensor) -> Tensor:
        logits_BK = self.classifier(encode(self.siglip, frames_BHWC))
        if logits_BK.shape != (len(frames_BHWC), len(CLASSES)):
            raise GuardrailUnavailable(
                f"the video content filter gave scores of shape {tuple(logits_BK.shape)} for "
                f"{len(frames_BHWC)} frames and {len(CLASSES)} classes"
            )
        if not torch.isfinite(logits_BK).all():
            raise GuardrailUnavailable(
                "the video content filter gave a NaN or an infinite score: its weights may be damaged"
            )
        return logits_BK.argmax(dim=-1)


def check_content_filter(folder: Path) -> None:
    """CheckpointError unless `folder` holds the classifier and the SigLIP whose features it takes."""
    _, widths = _open_classifier(folder)
    features = check_siglip(siglip_folder(folder))
    if features != widths[0]:
        raise CheckpointError(
            f"{folder / CLASSIFIER_FILE} takes {widths[0]} features, but the SigLIP beside it gives "
            f"{features}: they do not belong together."
        )


def build_content_filter(folder: Path, *, device: torch.device, dtype: torch.dtype) -> ContentFilter:
    """Filled on the device; dtype is that of SigLIP, the classifier computes in float32."""
    checkpoint, widths = _open_classifier(folder)
    with torch.device("meta"):
        classifier = SafetyClassifier(widths)
    classifier = classifier.to_empty(device=device)
    fill(classifier, checkpoint)
    siglip = build_siglip(siglip_folder(folder), device=device, dtype=dtype)
    return ContentFilter(siglip, classifier).eval().requires_grad_(False)


def _open_classifier(folder: Path) -> tuple[Checkpoint, tuple[int, int, int]]:
    checkpoint = open_checkpoint(folder / CLASSIFIER_FILE)
    shapes = [checkpoint.shape(name) if name in checkpoint.names() else () for name in _LINEARS]
    if any(len(shape) != 2 for shape in shapes):
        raise CheckpointError(
            f"{checkpoint.path} is no classifier of the video content filter: it must hold the matrices "
            f"{', '.join(_LINEARS)}."
        )
    (first, width), (second, _), _ = shapes
    with torch.device("meta"):
        check_same_tensors(SafetyClassifier((width, first, second)), checkpoint)
    return checkpoint, (width, first, second)
