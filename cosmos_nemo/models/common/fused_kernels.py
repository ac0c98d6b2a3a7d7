"""Triton kernels of fused.py. Imported only where Triton is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_HEADS_A_PROGRAM = 32
_TOKENS_A_PROGRAM = 64
_SMALLEST = tl.constexpr(2.0**-100)
_HALF_ROOT = tl.constexpr(0.5**0.5)
_LOG2_E = tl.constexpr(1.4426950408889634)


def try_out() -> None:
    """Raises whatever keeps a kernel from running on the current GPU."""
    x = torch.ones(1, 1, 1, 16, device="cuda")
    norm_and_rotate(x, x.flatten(), None, 0.0)
    torch.cuda.synchronize()


def norm_and_rotate(
    x_SBNK: Tensor, weight_K: Tensor, cos_sin_S11K: tuple[Tensor, Tensor] | None, eps: float
) -> Tensor:
    """K is a power of two and lies together in memory. Not rotated without cosines and sines."""
    _, batch, heads, width = x_SBNK.shape
    out = torch.empty(x_SBNK.shape, dtype=x_SBNK.dtype, device=x_SBNK.device)
    rows = out.numel() // width
    _norm_and_rotate[(triton.cdiv(rows, _HEADS_A_PROGRAM),)](
        *(x_SBNK, weight_K, *(cos_sin_S11K or (x_SBNK, x_SBNK)), out, eps, rows),
        *x_SBNK.stride()[:3],
        BATCH=batch,
        HEADS=heads,
        WIDTH=width,
        ROWS=_HEADS_A_PROGRAM,
        ROTATES=cos_sin_S11K is not None,
        num_warps=8,
    )
    return out


def add_and_modulate(
    x_SBD: Tensor,
    change_SBD: Tensor | None,
    by: tuple[Tensor | None, Tensor | None, Tensor | None],
    row_of_token: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x + gate * change, and its norm times a factor plus a shift; what is not asked for is x.

    by: gate, shift, factor (1 + scale), each [B, D] or, with rows, [R, B, D]. No change: x is normed as it
    is; no gate: the change is added as it is, and its batch may be 1; no shift: nothing is normed. x and
    change are contiguous.
    """
    length, batch, width = x_SBD.shape
    gate, shift, factor = (_whole(part, batch) for part in by)
    added = x_SBD if change_SBD is None else torch.empty_like(x_SBD)
    normed = x_SBD if shift is None else torch.empty_like(x_SBD)
    if length == 0:
        return added, normed
    _add_and_modulate[(length, batch)](
        x_SBD,
        *(x_SBD if part is None else part for part in (change_SBD, gate, shift, factor, row_of_token)),
        *(added, normed, eps),
        BATCH=batch,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADDS=change_SBD is not None,
        GATES=gate is not None,
        CHANGE_BATCH=1 if change_SBD is None else change_SBD.shape[1],
        NORMS=shift is not None,
        HAS_ROWS=row_of_token is not None,
        num_warps=4 if width <= 4096 else 8,
    )
    return added, normed


def round_rows(x_RD: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """E4M3 [R, D] and the rows' scales, float32 [R, 1], of x or of GELU(x). x is contiguous."""
    rows, width = x_RD.shape
    out = torch.empty(x_RD.shape, dtype=torch.float8_e4m3fn, device=x_RD.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x_RD.device)
    if rows:
        warps = 4 if width <= 4096 else 8 if width <= 8192 else 16
        _round_rows[(rows,)](
            *(x_RD, out, scale),
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            GELU=gelu,
            num_warps=warps,
        )
    return out, scale


def round_heads(x_SBNK: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 [S, B, N, K], contiguous, and the heads' scales, float32 [B, N]. K as of norm_and_rotate."""
    length, batch, heads, width = x_SBNK.shape
    out = torch.empty(x_SBNK.shape, dtype=torch.float8_e4m3fn, device=x_SBNK.device)
    largest = torch.zeros(batch, heads, dtype=torch.float32, device=x_SBNK.device)
    scale = torch.empty_like(largest)
    if length:
        grid = (triton.cdiv(length, _TOKENS_A_PROGRAM), batch * heads)
        facts = {"HEADS": heads, "WIDTH": width, "TOKENS": _TOKENS_A_PROGRAM, "num_warps": 4}
        _largest_of_heads[grid](x_SBNK, largest, length, *x_SBNK.stride()[:3], **facts)
        _round_heads[grid](
            *(x_SBNK, largest, out, scale, length), *x_SBNK.stride()[:3], *out.stride()[:3], **facts
        )
    return out, scale


def _whole(by_BD: Tensor | None, batch: int) -> Tensor | None:
    return None if by_BD is None else by_BD.expand(*by_BD.shape[:-2], batch, -1).contiguous()


@triton.jit
def _norm_and_rotate(
    x, weight, cos, sin, out, eps, num_rows, stride_s, stride_b, stride_n,
    BATCH: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ROTATES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (rows < num_rows)[:, None]
    token, sample, head = rows // (BATCH * HEADS), rows // HEADS % BATCH, rows % HEADS
    source = x + (token * stride_s + sample * stride_b + head * stride_n)[:, None]
    columns = tl.arange(0, WIDTH)
    value = tl.load(source + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 1) / WIDTH + eps)[:, None]
    dtype = out.dtype.element_ty
    normed = (value * factor * tl.load(weight + columns).to(tl.float32)[None, :]).to(dtype)
    if ROTATES:
        partners = (columns + WIDTH // 2) % WIDTH
        partner = tl.load(source + partners[None, :], mask=inside, other=0.0).to(tl.float32)
        other = (partner * factor * tl.load(weight + partners).to(tl.float32)[None, :]).to(dtype)
        angles = token[:, None] * WIDTH + columns[None, :]
        cosines = tl.load(cos + angles, mask=inside, other=0.0)
        sines = tl.load(sin + angles, mask=inside, other=0.0)
        sign = tl.where(columns < WIDTH // 2, -1.0, 1.0)[None, :]
        normed = (normed.to(tl.float32) * cosines + sign * other.to(tl.float32) * sines).to(dtype)
    tl.store(out + rows[:, None] * WIDTH + columns[None, :], normed, mask=inside)


@triton.jit
def _add_and_modulate(
    x, change, gate, shift, factor, rows, added, out, eps,
    BATCH: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, GATES: tl.constexpr,
    CHANGE_BATCH: tl.constexpr, NORMS: tl.constexpr, HAS_ROWS: tl.constexpr,
):  # fmt: skip
    token, sample = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    line = (token * BATCH + sample) * WIDTH + columns
    by = sample * WIDTH + columns
    if HAS_ROWS:
        by += tl.load(rows + token) * BATCH * WIDTH
    dtype = out.dtype.element_ty
    value = tl.load(x + line, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        told = line if CHANGE_BATCH == BATCH else token * WIDTH + columns
        moved_by = tl.load(change + told, mask=inside, other=0.0).to(tl.float32)
        if GATES:
            moved_by *= tl.load(gate + by, mask=inside, other=0.0).to(tl.float32)
        rounded = (value + moved_by).to(dtype)
        tl.store(added + line, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if NORMS:
        mean = tl.sum(value, 0) / WIDTH
        centred = tl.where(inside, value - mean, 0.0)
        normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
        moved = tl.load(shift + by, mask=inside, other=0.0).to(tl.float32)
        scaled = normed.to(dtype).to(tl.float32) * tl.load(factor + by, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + line, (moved + scaled).to(dtype), mask=inside)


@triton.jit
def _scale_for(largest):
    """As fused._scale_for."""
    bits = tl.maximum(largest, _SMALLEST).to(tl.int32, bitcast=True)
    return (((bits + 0x1FFFFF) & 0x7F800000) - (8 << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _inverse(scale):
    """Of a power of two: exact, and cheaper than to divide by it."""
    return ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _gelu(x):
    """relu(x) - |x| erfc(|x| / sqrt(2)) / 2, to 3e-7 |x|: erfc by Abramowitz and Stegun, 7.1.26.

    With Triton's erf the kernel has 43 instructions a value in place of 27, and waits for them.
    """
    size = tl.abs(x)
    part = 1 / (1 + 0.3275911 * _HALF_ROOT * size)
    sums = 0.7107068705 + part * (-0.7265760135 + part * 0.5307027145)
    half = part * (0.127414796 + part * (-0.142248368 + part * sums)) * tl.exp2(-0.5 * _LOG2_E * size * size)
    return tl.maximum(x, 0.0) - size * half


@triton.jit
def _round_rows(x, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        value = _gelu(value)
    scale = _scale_for(tl.max(tl.abs(value), 0))
    tl.store(scales + row, scale)
    tl.store(out + row * WIDTH + columns, (value * _inverse(scale)).to(tl.float8e4nv), mask=inside)


@triton.jit
def _largest_of_heads(
    x, largest, length, stride_s, stride_b, stride_n,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    source = x + (head // HEADS).to(tl.int64) * stride_b + (head % HEADS) * stride_n
    places = source + tokens[:, None] * stride_s + tl.arange(0, WIDTH)[None, :]
    value = tl.load(places, mask=(tokens < length)[:, None], other=0.0).to(tl.float32)
    tl.atomic_max(largest + head, tl.max(tl.max(tl.abs(value), 1), 0))


@triton.jit
def _round_heads(
    x, largest, out, scales, length, stride_s, stride_b, stride_n, out_s, out_b, out_n,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    sample, place = (head // HEADS).to(tl.int64), head % HEADS
    scale = _scale_for(tl.load(largest + head))
    tl.store(scales + head, scale, mask=tl.program_id(0) == 0)
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    inside, columns = (tokens < length)[:, None], tl.arange(0, WIDTH)[None, :]
    source = x + sample * stride_b + place * stride_n + tokens[:, None] * stride_s
    target = out + sample * out_b + place * out_n + tokens[:, None] * out_s
    value = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + columns, (value * _inverse(scale)).to(tl.float8e4nv), mask=inside)
