"""--precision fp8 of the te back end: matrix products and self attention in 8 bits (E4M3).

Every tensor is scaled by its own largest value as it is now (Transformer Engine's "current scaling"). Nothing
is remembered from call to call, so that a video does not depend on the videos before it. Each of several
ranks scales its own tokens, heads or shard of a weight, so that their video is not quite that of one rank.
Weights stay in bfloat16 and are rounded anew in every call.

Not in 8 bits: norms, modulation, embeddings, the text's keys and values, attention to the text, the final
layer.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.models.common.backend import TEAttention, te_missing

logger = logging.getLogger(__name__)

_LARGEST = 448.0
"""Of E4M3."""
_ROWS = 8
"""The tokens of a matrix product must divide by it."""


def fp8_missing() -> str | None:
    """Why this machine cannot compute in 8 bits, or None when it can."""
    reason = te_missing()
    if reason is not None:
        return reason
    import transformer_engine.pytorch as te

    if not hasattr(te, "autocast"):
        return "this Transformer Engine is older than 2.9"
    available, why = te.is_fp8_available(return_reason=True)
    return None if available else str(why).rstrip(".")


def fp8_products(num_rows: int) -> AbstractContextManager[Any]:
    """Within it Transformer Engine's linears multiply in 8 bits, if so many tokens allow it."""
    if num_rows % _ROWS:
        _warn(f"{num_rows} tokens do not divide by {_ROWS}: their products stay in bfloat16")
        return nullcontext()
    return _region()


def _region() -> AbstractContextManager[Any]:
    import transformer_engine.pytorch as te
    from transformer_engine.common.recipe import Float8CurrentScaling

    region: AbstractContextManager[Any] = te.autocast(enabled=True, recipe=Float8CurrentScaling())
    return region


class FP8Attention(TEAttention):
    """TEAttention in 8 bits where cuDNN has a kernel for the shape, else in bfloat16, with a warning.

    Without Transformer Engine's ring, which would stay in bfloat16.
    """

    def __init__(self, **parts: Any) -> None:
        """parts: as of TEAttention."""
        super().__init__(**parts)
        self.ring = None
        self.has_no_kernel: set[tuple[torch.Size, torch.Size]] = set()

    def _attend(self, q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
        shapes = q_SBNK.shape, k_LBNK.shape
        if shapes not in self.has_no_kernel:
            try:
                return attend_in_fp8(q_SBNK, k_LBNK, v_LBNK)
            except (RuntimeError, ValueError) as error:
                if _is_out_of_memory(error):
                    raise torch.OutOfMemoryError(str(error)) from error
                self.has_no_kernel.add(shapes)
                said = str(error).strip().splitlines() or [""]
                _warn(f"self attention of {q_SBNK.shape[0]} tokens stays in bfloat16: {said[0][:200]}")
        return super()._attend(q_SBNK, k_LBNK, v_LBNK)


def attend_in_fp8(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) v, [S, B, N, K] in q's dtype, by cuDNN's kernel for 8 bits.

    Its module in Transformer Engine takes the scales on a Hopper GPU from earlier calls. They can be told
    beforehand: probabilities are at most 1, and no output is larger than the largest value.
    """
    import transformer_engine_torch as tex
    from transformer_engine.pytorch import Float8CurrentScalingQuantizer, Float8Quantizer
    from transformer_engine.pytorch.cpp_extensions.fused_attn import FusedAttnBackend, fused_attn_fwd

    length, batch, _, width = q_SBNK.shape
    num_keys, device, e4m3 = k_LBNK.shape[0], q_SBNK.device, tex.DType.kFloat8E4M3
    round_now = Float8CurrentScalingQuantizer(e4m3, device, columnwise=False)
    q, k, v = (round_now(part.contiguous()) for part in (q_SBNK, k_LBNK, v_LBNK))

    def scaled_by(scale: Tensor) -> Any:
        return Float8Quantizer(scale, torch.zeros(1, device=device), e4m3, columnwise=False)

    def ends(size: int) -> Tensor:
        return torch.arange(0, (batch + 1) * size, size, dtype=torch.int32, device=device)

    out, *_ = fused_attn_fwd(
        False,
        *(length, num_keys, ends(length), ends(num_keys)),
        *(q, k, v, q_SBNK.dtype, FusedAttnBackend["FP8"]),
        s_quantizer=scaled_by(torch.full((1,), _LARGEST, device=device)),
        o_quantizer=scaled_by(v._scale_inv.reciprocal().view(1)),
        attn_scale=width**-0.5,
        qkv_layout="sbhd_sbhd_sbhd",
        attn_mask_type="no_mask",
    )
    attended: Tensor = out.dequantize().view(q_SBNK.shape)
    return attended.to(q_SBNK.dtype)


def _is_out_of_memory(error: Exception) -> bool:
    """Also as Transformer Engine and cuDNN say it, whose errors are RuntimeErrors of any kind."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "alloc_failed" in said


@cache
def _warn(text: str) -> None:
    """Once for each text: there are many layers and calls."""
    logger.warning("--precision fp8: %s", text)
