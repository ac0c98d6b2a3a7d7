"""Self attention in 8 bits by cuDNN's kernel, through Transformer Engine: where FlashAttention 3 is missing.

It takes one scale for all heads of a rank.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from cosmos_nemo.models.common.missing import te_missing

_LARGEST = 448.0
"""Of E4M3."""


@cache
def cudnn_missing() -> str | None:
    """Why this machine cannot, or None when it can."""
    reason = te_missing()
    if reason is not None:
        return reason
    import transformer_engine.pytorch as te

    if not hasattr(te, "autocast"):
        return "this Transformer Engine is older than 2.9"
    available, why = te.is_fp8_available(return_reason=True)
    return None if available else str(why).rstrip(".")


def attend_by_cudnn(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
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
