"""SigLIP's picture encoder: where it lies inside the guardrail's folder, building it, and its input.

B frames, H W rows and columns, D width of the features.
"""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos_nemo.checkpoint.json_file import read_json
from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, open_checkpoint
from cosmos_nemo.stages.guardrail.filling import check_same_tensors, fill

REPOSITORY = "google/siglip-so400m-patch14-384"
CACHE_NAME = "models--" + REPOSITORY.replace("/", "--")
_LACKING = "is no complete SigLIP (copy or download the guardrail again)"
_PLAIN_NAMES = (REPOSITORY, REPOSITORY.partition("/")[2])

_POSITIONS = "embeddings.position_ids"
"""0, 1, 2, ...: in few files, and lost on the meta device."""
_PREPARATION = {
    "do_resize": True,
    "resample": 3,  # PIL's number of bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
"""What to_pixels does, as preprocessor_config.json puts it."""


def siglip_folder(folder: Path) -> Path:
    """SigLIP's own folder in `folder`, the content filter's: in a Hugging Face cache there, or by its name.

    CheckpointError if there is none, or if it is not clear which.
    """
    for name in _PLAIN_NAMES:
        if (folder / name).is_dir():
            return folder / name
    snapshots = folder / CACHE_NAME / "snapshots"
    found = {path.name: path for path in sorted(snapshots.glob("*")) if path.is_dir()}
    if not found:
        raise CheckpointError(
            f"{folder} has no SigLIP: {CACHE_NAME}/snapshots/ is missing or empty. Download the guardrail "
            f"again, or {REPOSITORY} into {folder / _PLAIN_NAMES[1]}."
        )
    reference = folder / CACHE_NAME / "refs" / "main"
    current = reference.read_text(encoding="utf-8").strip() if reference.is_file() else ""
    if current in found:
        return found[current]
    if len(found) > 1:
        raise CheckpointError(
            f"{snapshots} holds {len(found)} snapshots, and refs/main names none of them: keep one."
        )
    return next(iter(found.values()))


def check_siglip(folder: Path) -> int:
    """The width D of the features; CheckpointError unless `folder` is a complete SigLIP."""
    config = read_json(folder / "config.json", lacking=_LACKING)
    if config.get("model_type") not in ("siglip", "siglip_vision_model"):
        raise CheckpointError(
            f"{folder} holds a {config.get('model_type')} model where a SigLIP is needed: config.json must "
            "say model_type siglip."
        )
    model = _meta_model(folder)
    check_same_tensors(_tower(model), _open_tower(folder), ignored=(_POSITIONS,))
    _check_preparation(folder, size=model.config.image_size)
    return int(model.config.hidden_size)


def build_siglip(folder: Path, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """transformers' SiglipVisionModel of `folder`, filled on the device tensor by tensor.

    The file's text encoder is not read.
    """
    model = _meta_model(folder).to(dtype).to_empty(device=device).eval().requires_grad_(False)
    tower, checkpoint = _tower(model), _open_tower(folder)
    check_same_tensors(tower, checkpoint, ignored=(_POSITIONS,))
    fill(tower, checkpoint)
    _refill_positions(tower)
    return model


def encode(siglip: Any, frames_BHWC: Tensor) -> Tensor:
    """Features float32 [B, D] of length 1 of RGB frames 0..255 on the model's device.

    They are what SiglipModel.get_image_features gives: the attention-pooled output.
    """
    pixels_BCHW = to_pixels(frames_BHWC, size=siglip.config.image_size).to(siglip.dtype)
    features_BD = siglip(pixel_values=pixels_BCHW).pooler_output.float()
    return features_BD / features_BD.norm(dim=-1, keepdim=True)


def to_pixels(frames_BHWC: Tensor, *, size: int) -> Tensor:
    """Float32 -1..1 [B, 3, size, size] of frames 0..255, as SiglipImageProcessor makes them with PIL.

    PIL resizes bytes along the rows first, then along the columns, and rounds after each: so does this, on
    any device. Where a value lies between two levels, one may differ from PIL's by one level.
    """
    levels = rearrange(frames_BHWC, "b h w c -> b c h w").float()
    levels = _resize(levels, height=levels.shape[2], width=size)
    levels = _resize(levels, height=size, width=size)
    return (levels / 255 - 0.5) / 0.5


def _resize(levels_BCHW: Tensor, *, height: int, width: int) -> Tensor:
    resized = F.interpolate(levels_BCHW, size=(height, width), mode="bicubic", antialias=True)
    return resized.round_().clamp_(0, 255)


def _meta_model(folder: Path) -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    try:
        config = SiglipVisionConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return SiglipVisionModel(config)
    except (ValueError, TypeError, OSError, ArithmeticError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder / 'config.json'} describes no SigLIP ({reason}).") from error


def _tower(model: nn.Module) -> nn.Module:
    """The vision encoder itself, which transformers before 5 wraps once more."""
    return getattr(model, "vision_model", model)


def _open_tower(folder: Path) -> Checkpoint:
    return open_checkpoint(folder).under("vision_model.")


def _refill_positions(tower: nn.Module) -> None:
    stored = tower.state_dict().keys()
    lost = [name for name, _ in tower.named_buffers() if name not in stored]
    assert lost == [_POSITIONS], f"this transformers has buffers in SigLIP that no file holds: {lost}"
    positions = tower.get_buffer(_POSITIONS)
    positions.copy_(torch.arange(positions.shape[-1]).expand_as(positions))


def _check_preparation(folder: Path, *, size: int) -> None:
    """CheckpointError if the file's pictures are to be prepared in another way than to_pixels does."""
    path = folder / "preprocessor_config.json"
    asked = _PREPARATION | {"size": {"height": size, "width": size}}
    found = read_json(path, lacking=_LACKING)
    for key, value in asked.items():
        if key in found and found[key] != value:
            raise CheckpointError(f"{path} says {key} {found[key]}, but only {value} is known here.")
