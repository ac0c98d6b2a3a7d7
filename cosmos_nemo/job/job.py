"""Everything that is decided before the ranks connect."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from cosmos_nemo.catalog import Family, ModelCard
from cosmos_nemo.job.batch_file import BadLine
from cosmos_nemo.job.files import Files, has_guardrails
from cosmos_nemo.job.visual_inputs import VisualInput
from cosmos_nemo.models.common.backend import Backend
from cosmos_nemo.plan import Plan
from cosmos_nemo.request import Setup, Text2ImageRequest, Text2WorldRequest, VisualRequest
from cosmos_nemo.stages.item_error import ItemError
from cosmos_nemo.stages.media import file_digest

_NOT_OF_THE_VIDEO = ("video_path", "line_number", "visual_input")
"""Fields of a request. What the visual input holds counts, not where it lies."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The same on every rank but for the device and what `from_rank_zero` holds."""

    card: ModelCard
    setup: Setup
    requests: tuple[Text2WorldRequest, ...]
    bad_lines: tuple[BadLine, ...] = ()
    passed_over: tuple[str, ...] = ()
    """Fields of a batch file's lines that no video is made of."""
    is_batch: bool = False
    """Videos that an earlier run finished are not made again."""
    needs: tuple[str, ...]
    """The models of a run, by the names of `files`."""
    files: Files
    plan: Plan
    device: torch.device
    backend: Backend
    text_cache: Path | None
    identities: Mapping[str, Mapping[str, str]]
    """Of each file: its path and fingerprint, taken before it is read."""
    visual_inputs: Mapping[Path, VisualInput] = field(default_factory=dict)
    """What the requests name as such."""

    @property
    def from_rank_zero(self) -> dict[str, Any]:
        """The fields that rank 0 alone knows, which every rank needs: it alone looks at visual inputs, and
        those that are damaged make bad lines of good ones."""
        names = ("identities", "visual_inputs", "requests", "bad_lines")
        return {name: getattr(self, name) for name in names}

    @property
    def request(self) -> Text2WorldRequest:
        """The first one. All have its sizes, steps, sampler and guidance."""
        return self.requests[0]

    @property
    def folder(self) -> Path | None:
        """Where the videos of a batch go; None for images, of which each says where it goes."""
        return None if isinstance(self.request, Text2ImageRequest) else self.request.video_path.parent

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16, as released, where a GPU computes; float32 on the CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def text_encoder_dtype(self) -> torch.dtype:
        """As asked, else as the network. In bfloat16 a CPU's result would depend on its number of threads."""
        asked = self.setup.text_encoder_dtype
        return self.dtype if asked == "auto" else getattr(torch, asked)

    @property
    def has_guardrails(self) -> bool:
        return has_guardrails(self.card, self.setup)

    def facts(self, request: Text2WorldRequest) -> dict[str, Any]:
        """What the manifest says of a video: how to make the same again, and from which weights."""
        return {
            "model": self.card.name,
            "request": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(request).items()},
            "item": self.item_of(request),
            **self._visual_input(request),
            "files": dict(self.identities),
            "plan": asdict(self.plan),
            "backend": self.backend.name,
            "precision": self.setup.precision,
            "dtype": str(self.dtype).removeprefix("torch."),
            "rope_dtype": self.setup.rope_dtype,
            "averaged": self.setup.averaged,
            "text_encoder_dtype": str(self.text_encoder_dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "guardrails": {"state": self._guardrails()},
            "prompt_upsampler": self._upsampling(),
        }

    def _dtypes(self) -> list[str]:
        """Without bf16, so that what was finished before there was a --precision stays finished."""
        rounding = [] if self.setup.precision == "bf16" else [self.setup.precision]
        return [str(self.dtype), self.setup.rope_dtype, str(self.text_encoder_dtype), *rounding]

    def item_of(self, request: Text2WorldRequest) -> str:
        """16 hex digits: the same for runs that make the same video, wherever it goes and on however many
        ranks. It tells a rerun of a batch what is finished."""
        what = {
            "model": asdict(self.card),
            "request": {n: v for n, v in asdict(request).items() if n not in _NOT_OF_THE_VIDEO},
            **self._visual_input(request),
            "files": {name: file["fingerprint"] for name, file in self.identities.items()},
            "dtypes": self._dtypes(),
            "guardrails": self._guardrails(),
            "prompt_upsampler": self._upsampling(),
            **({"averaged": True} if self.setup.averaged else {}),
        }
        text = json.dumps(what, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_unchanged(self, request: Text2WorldRequest) -> None:
        """ItemError if the visual input is not any more the file that this job was made for."""
        if not isinstance(request, VisualRequest):
            return
        path = request.visual_input
        try:
            is_same = file_digest(path) == self.visual_inputs[path].sha256
        except OSError as error:
            raise ItemError(f"{path} cannot be read any more: {error.strerror or error}.") from error
        if not is_same:
            raise ItemError(f"{path} is another file than when this run began. Start the run again.")

    def _visual_input(self, request: Text2WorldRequest) -> dict[str, str]:
        if not isinstance(request, VisualRequest):
            return {}
        return {"visual_input_sha256": self.visual_inputs[request.visual_input].sha256}

    def _guardrails(self) -> str:
        if self.has_guardrails:
            return "on"
        return "the model comes without" if self.setup.guardrails else "disabled by --disable_guardrail"

    def _upsampling(self) -> str:
        if self.setup.upsamples and isinstance(self.request, VisualRequest):
            if self.card.network.family is Family.PREDICT2:
                return "on, joins the prompt with what it sees"
            return "on, describes the visual input"
        return f"on, up to {self.setup.word_limit} words" if self.setup.upsamples else "off"
