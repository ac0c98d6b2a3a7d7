"""The core attention of the torch back end, and how any core attention meets context parallel.

Legend: S query tokens, L keys, s tokens of one rank, B batch, N heads, K head width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos_nemo.models.common import flash
from cosmos_nemo.parallel.context import Attend, attend_by_gathering, attend_by_heads

# On Hopper cuDNN reaches 613 TFLOP/s, FlashAttention 2 352; the others serve float32 and the CPU.
_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def dot_product_attention(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) v without mask, [S, B, N, K], by FlashAttention 3 or attend_by_torch."""
    attend = flash.attend if flash.serves(q_SBNK) else attend_by_torch
    return attend(q_SBNK, k_LBNK, v_LBNK)


def attend_by_torch(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
    """dot_product_attention by torch's scaled_dot_product_attention."""
    q, k, v = (rearrange(part, "s b n k -> b n s k") for part in (q_SBNK, k_LBNK, v_LBNK))
    with sdpa_kernel(_KERNELS, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "b n s k -> s b n k")


def attend_in_context(
    attend: Attend, q_sBNK: Tensor, k_sBNK: Tensor, v_sBNK: Tensor, group: ProcessGroup, num_tokens: int
) -> Tensor:
    """`attend` over the group's tokens, for this rank's: by heads where they divide, else by gathering."""
    if group.size() == 1:
        return attend(q_sBNK, k_sBNK, v_sBNK)
    form = attend_by_heads if q_sBNK.shape[2] % group.size() == 0 else attend_by_gathering
    return form(attend, q_sBNK, k_sBNK, v_sBNK, group, num_tokens)


class TorchAttention(nn.Module):
    """Core attention of the torch back end; `num_heads` are those of this tensor parallel rank."""

    def __init__(self, *, num_heads: int, head_dim: int, cp: ProcessGroup | None) -> None:
        super().__init__()
        self.cp = cp

    def attend(self, q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
        """Of whole sequences, [S, B, N, K]."""
        return dot_product_attention(q_SBNK, k_LBNK, v_LBNK)

    def forward(self, q_sBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor, num_tokens: int) -> Tensor:
        """[s, B, N, K]. With a group, keys are split over it like queries, and `num_tokens` counts all."""
        if self.cp is None:
            return self.attend(q_sBNK, k_LBNK, v_LBNK)
        return attend_in_context(self.attend, q_sBNK, k_LBNK, v_LBNK, self.cp, num_tokens)


class TorchRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with the constructor that Megatron gives a norm."""

    def __init__(self, *, hidden_size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__(hidden_size, eps=eps, dtype=dtype)
