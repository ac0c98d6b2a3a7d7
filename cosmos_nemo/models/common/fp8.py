"""--precision fp8: matrix products and self attention of the video's tokens in 8 bits (E4M3).

Every row of a product's two sides has a scale of its own, a token's or a weight's output; of self attention
every head has. A scale follows from the largest value as it is now and is a power of two, so that it moves
the range of the 8 bits and changes nothing else in how a value is rounded, unless it is far smaller than the
largest (below a 14,000th). Nothing is remembered from call to call. Ranks that share the tokens of a video
round as one does, but for such values of the queries where heads do not divide by the ranks.

Weights stay in bfloat16 and are rounded anew in every call. Not in 8 bits: norms, modulation, embeddings, the
text's keys and values, attention to the text, the final layer.

On a CPU values are rounded alike and computed with in their own type: to look at, not to save time.

Legend: S query tokens, L keys, B batch, N heads, K head width, R rows, D inputs, O outputs.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP
from torch import Tensor
from torch.nn import functional as F

from cosmos_nemo.models.common import flash
from cosmos_nemo.models.common.attention import TorchAttention, dot_product_attention
from cosmos_nemo.models.common.fp8_cudnn import attend_by_cudnn, cudnn_missing
from cosmos_nemo.models.common.fused import Rounded, round_heads, round_rows
from cosmos_nemo.models.common.missing import BackendError
from cosmos_nemo.parallel.context import Attend

logger = logging.getLogger(__name__)

_DIVIDES = 16
"""Inputs and outputs of a matrix in 8 bits are multiples of it."""
_FAST = 5120
"""Inputs up to which a Hopper GPU's tensor cores may add up in their own 14 bits, which is a tenth faster.

With 5120 that changes a product by 6e-3, where rounding changes it by 4e-2; with 16384 by 2e-2.
"""


def fp8_missing() -> str | None:
    """Why this machine should not compute in 8 bits, or None when it can."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9):
        return None
    return f"8 bits take a GPU from Ada or Hopper on, and {torch.cuda.get_device_name()} is older"


def multiply(x_SBD: Tensor, weight_OD: Tensor, *, gelu: bool = False) -> Tensor:
    """x weight^T, or GELU(x) weight^T, [S, B, O] in x's dtype, with both sides rounded by rows."""
    outputs, inputs = weight_OD.shape
    if inputs % _DIVIDES or outputs % _DIVIDES:
        _warn(f"matrices of {outputs} x {inputs} do not divide by {_DIVIDES} and stay in {_name(x_SBD)}")
        return F.linear(F.gelu(x_SBD) if gelu else x_SBD, weight_OD)
    x, weight = round_rows(x_SBD.flatten(0, 1), gelu=gelu), round_rows(weight_OD)
    if x_SBD.is_cuda:
        out = _multiply_on_gpu(x, weight)
    else:
        out = F.linear(x.widened(x_SBD.dtype), weight.widened(x_SBD.dtype))
    return out.to(x_SBD.dtype).view(*x_SBD.shape[:2], outputs)


def _multiply_on_gpu(x: Rounded, weight: Rounded) -> Tensor:
    try:
        return torch._scaled_mm(
            *(x.values, weight.values.t()),
            scale_a=x.scale,
            scale_b=weight.scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=x.values.shape[1] <= _FAST,
        )
    except RuntimeError as error:
        _raise_if_fatal(error)
        raise BackendError(
            "--precision fp8 cannot run here: a product in 8 bits with a scale for each row failed on this "
            f"GPU ({_first_line(error)}). Pass --precision bf16."
        ) from error


class _In8Bits:
    """Takes the place of the product that both of Megatron's linears call."""

    takes_gelu = False
    """Whether GELU of the inputs is meant."""

    def _forward_impl(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **others: Any
    ) -> Tensor:
        assert bias is None and not others.get("sequence_parallel"), "a linear of another kind"
        return multiply(input, weight, gelu=self.takes_gelu)


class FP8ColumnParallelLinear(_In8Bits, ColumnParallelLinear):
    pass


class FP8RowParallelLinear(_In8Bits, RowParallelLinear):
    pass


class FP8MLP(MLP):
    """Megatron's, but that GELU is computed where its result is rounded: in the second product."""

    def __init__(self, *args: Any, **parts: Any) -> None:
        """As of MLP, whose linears are the ones above and whose activation is GELU."""
        super().__init__(*args, **parts)
        assert self.config.activation_func is F.gelu, "another activation"
        assert isinstance(self.linear_fc2, _In8Bits), "a linear of another kind"
        self.linear_fc2.takes_gelu = True
        self.activation_func = _as_it_is


def _as_it_is(x: Tensor) -> Tensor:
    return x


class Kernel(NamedTuple):
    """Of self attention in 8 bits."""

    name: str
    missing: Callable[[Tensor], str | None]
    """Why it cannot attend with such queries, or None when it can."""
    attend: Attend


class FP8Attention(TorchAttention):
    """Self attention in 8 bits, by the first of the kernels that can compute it for the shape.

    Where none can it stays in bfloat16, with a warning.
    """

    def __init__(self, *, kernels: Sequence[Kernel] | None = None, **parts: Any) -> None:
        """kernels: KERNELS. parts: as of TorchAttention."""
        super().__init__(**parts)
        self.kernels = KERNELS if kernels is None else kernels
        self.has_no_kernel: set[tuple[str, torch.Size, torch.Size]] = set()

    def attend(self, q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
        if not q_SBNK.is_cuda:
            return attend_rounded(q_SBNK, k_LBNK, v_LBNK)
        for name, missing, attend in self.kernels:
            key = name, q_SBNK.shape, k_LBNK.shape
            if key in self.has_no_kernel or missing(q_SBNK) is not None:
                continue
            try:
                return attend(q_SBNK, k_LBNK, v_LBNK)
            except (RuntimeError, ValueError, AssertionError) as error:
                _raise_if_fatal(error)
                self.has_no_kernel.add(key)
                tokens = f"{q_SBNK.shape[0]} tokens among {k_LBNK.shape[0]}"
                _warn(f"{name} has no kernel for {tokens}: {_first_line(error)}")
        why = "; ".join(f"{name}: {missing(q_SBNK) or 'see above'}" for name, missing, _ in self.kernels)
        _warn(f"self attention stays in bfloat16 ({why})")
        return dot_product_attention(q_SBNK, k_LBNK, v_LBNK)


def attend_by_flash(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) v, [S, B, N, K] in bfloat16, by FlashAttention 3's kernel for 8 bits."""
    q, k, v = (round_heads(part) for part in (q_SBNK, k_LBNK, v_LBNK))
    scales = {"q_descale": q.scale, "k_descale": k.scale, "v_descale": v.scale}
    return flash.attend(q.values, k.values, v.values, **scales)


def attend_rounded(q_SBNK: Tensor, k_LBNK: Tensor, v_LBNK: Tensor) -> Tensor:
    """The same in q's dtype from values that have only been rounded; the probabilities are not."""
    q, k, v = (round_heads(part).widened(q_SBNK.dtype) for part in (q_SBNK, k_LBNK, v_LBNK))
    return dot_product_attention(q, k, v)


def _flash_missing(q_SBNK: Tensor) -> str | None:
    return None if flash.serves(q_SBNK) else "not installed, or not for this GPU or head width"


KERNELS = (
    Kernel("FlashAttention 3", _flash_missing, attend_by_flash),
    Kernel("cuDNN", lambda q_SBNK: cudnn_missing(), attend_by_cudnn),
)


def _raise_if_fatal(error: Exception) -> None:
    """What says nothing of kernels: too little memory, or a GPU on which something has failed before.

    OutOfMemoryError also for what Transformer Engine, cuDNN and cuBLAS say in RuntimeErrors of any kind.
    """
    said = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    if "out of memory" in said or "alloc_failed" in said:
        raise torch.OutOfMemoryError(str(error)) from error
    if "cuda error" in said:  # a kernel's failure is told by whatever is called after it
        raise error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


@cache
def _warn(text: str) -> None:
    """Once for each text: there are many layers and calls."""
    logger.warning("--precision fp8: %s", text)
