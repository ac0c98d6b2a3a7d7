"""aux_vars.pt beside a diffusion decoder: the text embedding it was trained with where there is no prompt."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader import CheckpointError

AUX_VARS = "aux_vars.pt"
_CONTEXT = "context"


def read_generic_text(checkpoint: Path, *, text_dim: int) -> Tensor:
    """The embedding [1, L, text_dim] of the generic prompt, from aux_vars.pt of the decoder at `checkpoint`.

    It lies in the checkpoint's folder, beside its file, or above a folder `weights` or `nemo` of it. The
    mask that is stored with it is not used, as no mask of a text is. CheckpointError if the file is missing,
    damaged or for a network of another width.
    """
    path = _find(checkpoint)
    if path is None:
        raise CheckpointError(
            f"{checkpoint} has no {AUX_VARS} beside it, the text embedding that the diffusion decoder needs "
            "where there is no prompt. Download it from the decoder's repository, or do without the decoder: "
            "--disable_diffusion_decoder"
        )
    content = _load(path)
    context = content.get(_CONTEXT) if isinstance(content, dict) else None
    if not isinstance(context, Tensor) or not context.is_floating_point():
        raise CheckpointError(
            f"{path} holds no text embedding under the name {_CONTEXT!r}: download it again"
        )
    text = context[None] if context.ndim == 2 else context
    if text.ndim != 3 or text.shape[0] != 1 or text.shape[1] == 0 or text.shape[2] != text_dim:
        raise CheckpointError(
            f"{path} holds a text embedding of shape {tuple(context.shape)}, but the decoder takes "
            f"[1, length, {text_dim}]: it belongs to another one"
        )
    if not text.isfinite().all():
        raise CheckpointError(f"{path} holds NaN or infinite values: download it again")
    return text


def write_aux_vars(folder: Path, text_BLD: Tensor) -> None:
    """Writes `text_BLD`, and a mask of ones, as the aux_vars.pt of the decoder in `folder`."""
    mask_BL = torch.ones(text_BLD.shape[:2], dtype=torch.bool)
    torch.save({_CONTEXT: text_BLD.contiguous(), "context_mask": mask_BL}, folder / AUX_VARS)


def copy_aux_vars(checkpoint: Path, folder: Path) -> None:
    """Puts the aux_vars.pt of the decoder at `checkpoint`, if it has one, into `folder` too."""
    path = _find(checkpoint)
    if path is not None:
        shutil.copyfile(path, folder / AUX_VARS)


def _find(checkpoint: Path) -> Path | None:
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    folders = [folder, *([folder.parent] if folder.name in ("weights", "nemo") else [])]
    return next((each / AUX_VARS for each in folders if (each / AUX_VARS).is_file()), None)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or damaged ({reason}): copy or download it again"
        ) from error
