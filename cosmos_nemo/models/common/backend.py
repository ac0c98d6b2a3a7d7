"""The two back ends, torch and Transformer Engine, as sets of building blocks.

Only here, in missing.py and in fp8_cudnn.py is Transformer Engine imported.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn
from torch.distributed import ProcessGroup, get_process_group_ranks

from cosmos_nemo.models.common.attention import TorchAttention, TorchRMSNorm, attend_in_context
from cosmos_nemo.models.common.flash import flash_attention_3
from cosmos_nemo.models.common.missing import BackendError, te_missing
from cosmos_nemo.parallel.context import local_length

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenBlocks:
    """What the video's tokens pass in a layer of a diffusion transformer."""

    column_linear: type
    row_linear: type
    self_attention: type[nn.Module] | ModuleSpec
    mlp: type[MLP] = MLP
    """Made of the two linears."""


@dataclass(frozen=True)
class Backend:
    """Classes a layer is made of, and what Megatron's config must say to build them on the meta device."""

    name: str
    column_linear: type
    row_linear: type
    rms_norm: type[nn.Module]
    attention: type[nn.Module] | ModuleSpec
    meta_config: Mapping[str, bool]
    fp8: TokenBlocks | None = None
    """With --precision fp8."""

    @property
    def precision(self) -> str:
        return "bf16" if self.fp8 is None else "fp8"

    @property
    def tokens(self) -> TokenBlocks:
        return self.fp8 or TokenBlocks(self.column_linear, self.row_linear, self.attention)


def torch_backend() -> Backend:
    return Backend(
        name="torch",
        column_linear=ColumnParallelLinear,
        row_linear=RowParallelLinear,
        rms_norm=TorchRMSNorm,
        attention=TorchAttention,
        meta_config={"use_cpu_initialization": True},
    )


def te_backend() -> Backend:
    """Transformer Engine's linears, norms and attention; BackendError where it does not import."""
    reason = te_missing()
    if reason is not None:
        raise BackendError(f"--backend te cannot run here: {reason}. Pass --backend torch.")
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

    return Backend(
        name="te",
        column_linear=TEColumnParallelLinear,
        row_linear=TERowParallelLinear,
        rms_norm=TERMSNorm,
        attention=TEAttention,
        meta_config={"init_model_with_meta_device": True},
    )


def fp8_backend() -> Backend:
    """torch_backend with 8 bits where the video's tokens pass; BackendError where that cannot be."""
    from cosmos_nemo.models.common import fp8

    reason = fp8.fp8_missing()
    if reason is not None:
        raise BackendError(f"--precision fp8 cannot run here: {reason}. Pass --precision bf16.")
    if not torch.cuda.is_available():
        logger.warning("--precision fp8 on a CPU: rounded as on a GPU, but slower than without")
    blocks = TokenBlocks(
        fp8.FP8ColumnParallelLinear, fp8.FP8RowParallelLinear, fp8.FP8Attention, mlp=fp8.FP8MLP
    )
    return replace(torch_backend(), fp8=blocks)


def choose_backend(asked: str, environ: Mapping[str, str], *, precision: str = "bf16") -> Backend:
    """The back end for --backend `asked`; BackendError where it cannot be.

    "auto" is torch where FlashAttention 3 is installed, which is faster than all that Transformer Engine has,
    else te on CUDA where it imports. precision "fp8" goes with torch alone: it brings products of its own.

    NVTE_FUSED_ATTN=0, as NeMo's published commands set it, would leave TE with flash attention at half the
    speed of cuDNN, or with unfused attention at 203 GB; then auto takes torch, which keeps cuDNN attention.
    """
    if precision == "fp8" and asked == "te":
        raise BackendError(
            "--precision fp8 brings matrix products of its own, in place of those of --backend te. "
            "Leave out one of them."
        )
    if precision == "fp8":
        backend, reason = fp8_backend(), "--precision fp8 asks for it"
    elif asked == "torch":
        backend, reason = torch_backend(), "asked for"
    elif asked == "te":
        backend, reason = te_backend(), "asked for"
    elif flash_attention_3() is not None:
        backend, reason = torch_backend(), "FlashAttention 3 is installed"
    elif environ.get("NVTE_FUSED_ATTN") == "0":
        backend, reason = torch_backend(), "NVTE_FUSED_ATTN=0 takes cuDNN attention from Transformer Engine"
    elif (missing := te_missing()) is not None:
        backend, reason = torch_backend(), missing
    else:
        backend, reason = te_backend(), "Transformer Engine imports"
    logger.info("back end %s: %s", backend.name, reason)
    return backend


class TERMSNorm(nn.Module):
    """Constructs Transformer Engine's RMSNorm (never an instance of this class)."""

    def __new__(cls, *, hidden_size: int, eps: float, dtype: torch.dtype) -> Any:
        import transformer_engine.pytorch as te

        return te.RMSNorm(hidden_size, eps=eps, params_dtype=dtype, device="meta")


class TEAttention(nn.Module):
    """Transformer Engine's attention inside the torch back end's exchange of tokens and heads.

    Where heads do not divide by the ranks, Transformer Engine's own ring takes over if nothing is padded and
    every rank has an even number of tokens, else keys and values are gathered. `prefer_ring` takes the ring
    wherever it can be: slower on two H200s (docs/performance.md), kept for comparison.
    """

    def __init__(
        self, *, num_heads: int, head_dim: int, cp: ProcessGroup | None, prefer_ring: bool = False
    ) -> None:
        super().__init__()
        self.cp = cp
        ranks = cp.size() if cp is not None else 1
        heads_divide = num_heads % ranks == 0
        counts = {num_heads, num_heads // ranks} if heads_divide else {num_heads}
        self.plain = nn.ModuleDict({str(n): _te_attention(n, head_dim) for n in counts})
        wants_ring = cp is not None and ranks > 1 and (prefer_ring or not heads_divide)
        self.ring = _te_ring(num_heads, head_dim, cp) if wants_ring and cp is not None else None

    def forward(self, q_sBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor, num_tokens: int) -> Tensor:
        """As TorchAttention.forward."""
        if self.cp is None:
            return self._attend(q_sBNK, k_LBNK, v_LBNK)
        length = local_length(num_tokens, self.cp)
        if self.ring is not None and length * self.cp.size() == num_tokens and length % 2 == 0:
            return _call(self.ring, q_sBNK, k_LBNK, v_LBNK)
        return attend_in_context(self._attend, q_sBNK, k_LBNK, v_LBNK, self.cp, num_tokens)

    def _attend(self, q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
        return _call(self.plain[str(q_SBNK.shape[2])], q_SBNK, k_LBNK, v_LBNK)


def _te_ring(num_heads: int, head_dim: int, cp: ProcessGroup) -> nn.Module:
    ring: Any = _te_attention(num_heads, head_dim)
    ring.set_context_parallel_group(cp, get_process_group_ranks(cp), torch.cuda.Stream(), "p2p")
    return ring


def _te_attention(num_heads: int, head_dim: int) -> nn.Module:
    import transformer_engine.pytorch as te

    return te.DotProductAttention(
        num_heads, head_dim, attention_dropout=0.0, qkv_format="sbhd", attn_mask_type="no_mask"
    )


def _call(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out_SBD = attention(q.contiguous(), k.contiguous(), v.contiguous())
    return out_SBD.view(*out_SBD.shape[:2], q.shape[2], -1)
