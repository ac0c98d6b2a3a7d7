"""Low-rank post-training (LoRA) folded into the weights that it changes.

A `_post-trained-lora` model.pt holds, beside `<attention>.to_q.0.weight` [out, in], a matrix
`<attention>.to_q_lora.net.0.weight` [rank, in] and one `...net.1.weight` [out, rank], for some of to_q, to_k,
to_v, to_out. The projection adds scale * up(down(x)) before its norm, so it is one linear map.
The file does not hold the scale: the released configuration has 1.
"""

import logging
import re
from functools import partial

import torch
from torch import Tensor

from cosmos_nemo.checkpoint.reader import Checkpoint, CheckpointError, LazyTensor
from cosmos_nemo.checkpoint.reader.base import Index

logger = logging.getLogger(__name__)

_PART = re.compile(r"(?P<linear>.+)_lora\.net\.(?P<part>[01])\.weight")


def merge_lora(checkpoint: Checkpoint, *, scale: float = 1.0) -> Checkpoint:
    """`checkpoint` with W + scale * up @ down in the place of W, up and down; itself if it has none of them.

    Each is computed in float32 when it is read, and only the part that is read, in the dtype of W.
    CheckpointError if a matrix lacks its partner or its W, or if the three do not fit.
    """
    found = [match for name in checkpoint.names() if (match := _PART.fullmatch(name))]
    if not found:
        return checkpoint
    linears = dict.fromkeys(match["linear"] for match in found)
    merged = {f"{linear}.0.weight": _merged(checkpoint, linear, scale=scale) for linear in linears}
    parts = {match.string for match in found}
    kept = {
        name: LazyTensor(checkpoint.shape(name), checkpoint.dtype(name), partial(checkpoint.read, name))
        for name in checkpoint.names()
        if name not in parts
    }
    logger.info("%s: LoRA merged into %d tensors", checkpoint.path, len(merged))
    return Checkpoint(checkpoint.path, layout=checkpoint.layout, tensors=kept | merged)


def _merged(checkpoint: Checkpoint, linear: str, *, scale: float) -> LazyTensor:
    whole, down, up = f"{linear}.0.weight", f"{linear}_lora.net.0.weight", f"{linear}_lora.net.1.weight"
    present = set(checkpoint.names())
    for name in (whole, down, up):
        if name not in present:
            raise CheckpointError(
                f"{checkpoint.path} lacks {name}, though {linear} was post-trained with LoRA: is it a whole "
                "model.pt of post-training?"
            )
    shape = checkpoint.shape(whole)
    rank = checkpoint.shape(down)[0]
    if checkpoint.shape(down) != (rank, *shape[1:]) or checkpoint.shape(up) != (shape[0], rank):
        raise CheckpointError(
            f"{checkpoint.path}: the LoRA matrices {checkpoint.shape(down)} and {checkpoint.shape(up)} of "
            f"{linear} do not fit its weight {shape}: they belong to another model."
        )

    def read(index: Index) -> Tensor:
        rows, columns = index
        weight = checkpoint.read(whole, index)
        change = checkpoint.read(up, (rows,)).float() @ checkpoint.read(down, (slice(None), columns)).float()
        return torch.add(weight.float(), change, alpha=scale).to(weight.dtype)

    return LazyTensor(shape, checkpoint.dtype(whole), read)
