"""The discrete video tokenizer as a stage: frames to token ids and back."""

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from cosmos_nemo.catalog import DiscreteTokenizerShape
from cosmos_nemo.checkpoint.discrete_tokenizer_names import LEVELS, match_names, tensor_shapes
from cosmos_nemo.checkpoint.load import load_into
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.checkpoint.rules import Rule, Same
from cosmos_nemo.models.discrete_tokenizer.fsq import check_levels
from cosmos_nemo.models.discrete_tokenizer.model import MODULES, PARTS, DiscreteTokenizer, build_autoencoder
from cosmos_nemo.models.video_tokenizer.model import to_uint8
from cosmos_nemo.stages.base import Stage

# NVIDIA's archives of one part or of both, what they were made of, and the same tensors as safetensors.
_WEIGHTS = ("{part}.jit", "autoencoder.jit", "model.pt", "tokenizer.safetensors")


class DiscreteTokenizerStage(Stage):
    """A discrete video tokenizer, read from one folder."""

    name: ClassVar[str] = "discrete_tokenizer"

    def __init__(
        self,
        *,
        shape: DiscreteTokenizerShape,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype | None = None,
        offload: bool = False,
        prefetches: bool = False,
        parts: Collection[str] = PARTS,
    ) -> None:
        """dtype: None is bfloat16 on a GPU and float32 on the CPU; parts: "encoder", "decoder" or both."""
        super().__init__(device=device, offload=offload, prefetches=prefetches)
        self.shape, self.folder, self.parts = shape, folder, parts
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)

    def check(self) -> None:
        """CheckpointError unless the folder holds the parts of such a tokenizer; ValueError for its sizes."""
        for part in self.parts:
            open_part(self.folder, self.shape, part=part)

    def build(self) -> DiscreteTokenizer:
        files = {part: open_part(self.folder, self.shape, part=part) for part in self.parts}
        autoencoder = build_autoencoder(self.shape, device=self.device, dtype=self.dtype, parts=self.parts)
        for part, (checkpoint, rules) in files.items():
            modules = nn.ModuleDict({name: autoencoder.get_submodule(name) for name in MODULES[part]})
            load_into(modules, checkpoint=checkpoint, rules=rules)
        return DiscreteTokenizer(autoencoder, levels=self.shape.levels)

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """int64 ids [B, T, h, w] on the device of a video -1..1; see DiscreteTokenizer.encode."""
        return self._tokenizer.encode(video_BCTHW.to(self.device))

    def decode(self, ids_BThw: Tensor) -> Tensor:
        """Frames uint8 0..255 [T, H, W, 3] on the CPU of the ids of one video.

        Levels are cut, not rounded, as the released script does and the other tokenizers here
        (spec/predict1-autoregressive.md, 4.5); it computes them in bfloat16, whose rounding may make them one
        higher. Each piece of the video leaves the device as soon as it is made.
        """
        pieces_BCTHW = self._tokenizer.decode_pieces(ids_BThw.to(self.device))
        return torch.cat([to_uint8(piece_BCTHW).cpu() for piece_BCTHW in pieces_BCTHW])

    @property
    def _tokenizer(self) -> DiscreteTokenizer:
        assert isinstance(self.module, DiscreteTokenizer), "enter the stage first"
        return self.module


def open_part(
    folder: Path, shape: DiscreteTokenizerShape, *, part: str
) -> tuple[Checkpoint, dict[str, Rule]]:
    """The file that holds `part` ("encoder" or "decoder"), and how the part's tensors are read from it.

    CheckpointError if there is none, or if its tensors are not those of `shape`.
    """
    check_levels(shape.levels)
    shapes = tensor_shapes(shape, parts=(part,))
    checkpoint = open_checkpoint(_weights_path(folder, part))
    match = match_names(shape, checkpoint.names(), parts=(part,))
    complaint = (
        match.complaint()
        or _other_shape(checkpoint, match.sources, shapes)
        or _other_levels(checkpoint, shape.levels)
    )
    if complaint:
        raise CheckpointError(
            f"{checkpoint.path}: {complaint}. Is it complete, and a discrete video tokenizer of "
            f"{shape.channels} channels?"
        )
    return checkpoint, {
        name: Same(names=(source,), shape=shapes[name]) for name, source in match.sources.items()
    }


def _weights_path(folder: Path, part: str) -> Path:
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: pass the folder that holds it")
    names = [name.format(part=part) for name in _WEIGHTS]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} holds no discrete video {part}: one of {', '.join(names)} is needed")
    return found


def _other_shape(checkpoint: Checkpoint, sources: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> str:
    other = [name for name, source in sources.items() if checkpoint.shape(source) != shapes[name]]
    if not other:
        return ""
    source, shape = sources[other[0]], shapes[other[0]]
    first = f"{source} is {checkpoint.shape(source)}, not {shape}"
    return f"{len(other)} of {len(sources)} tensors of another shape, first: {first}"


def _other_levels(checkpoint: Checkpoint, levels: tuple[int, ...]) -> str:
    """Ids would mean other codes, which no shape shows. Files other than archives do not say."""
    for name in LEVELS:
        if name in checkpoint.names():
            found = tuple(checkpoint.read(name).flatten().tolist())
            if found != levels:
                return f"its codes have {found} values per channel, not {levels}"
    return ""
