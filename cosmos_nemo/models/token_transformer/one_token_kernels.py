"""Triton kernels for one token of each video: what lies between the matrix products of a layer.

One token has so little arithmetic that every kernel costs its launch. PyTorch's operations would be thirty
launches a layer; these are six. They compute in float32 and round where the layers do (layers.py), so that a
token is read as `TokenLayer.forward` reads it, but for the order of sums. Imported only where Triton is.

Legend: B batch, D width, N query heads, M key heads, G = N / M, K head width, L places of the cache,
F channels of the MLP, I inputs and O outputs of a product.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 512
"""Of the attention: about four for each multiprocessor of an H100, and a power of two."""
_BLOCK_KEYS = 64
_MIN_ROWS = 16
"""Of a matrix product on tensor cores."""


def add_and_norm(
    x_BD: Tensor, delta_BD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + delta, and its RMSNorm; both [B, D] in x's dtype. Without a delta the first is x itself."""
    batch, width = x_BD.shape
    total = x_BD if delta_BD is None else torch.empty_like(x_BD)
    normed = torch.empty_like(x_BD)
    _add_and_norm[(batch,)](
        *(x_BD, x_BD if delta_BD is None else delta_BD, weight_D, total, normed, eps),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADDS=delta_BD is not None,
        num_warps=8,
    )
    return total, normed


def norm_rotate_and_store(
    qkv_BR: Tensor,
    q_weight_K: Tensor,
    k_weight_K: Tensor,
    cos_LK: Tensor,
    sin_LK: Tensor,
    position: Tensor,
    k_LBMK: Tensor,
    v_LBMK: Tensor,
    *,
    eps: float,
) -> Tensor:
    """Queries and keys normed per head and rotated; key and value go into their place, queries are returned.

    qkv_BR: of each key head in turn the queries of its group, the key and the value. position: int64 without
    axes on the device. [B, N, K].
    """
    _, batch, heads, width = k_LBMK.shape
    rows = qkv_BR.shape[1] // (heads * width)
    q_BNK = torch.empty(batch, heads * (rows - 2), width, dtype=qkv_BR.dtype, device=qkv_BR.device)
    _norm_rotate_and_store[(batch, heads * rows)](
        *(qkv_BR, q_weight_K, k_weight_K, cos_LK, sin_LK, position, q_BNK, k_LBMK, v_LBMK, eps),
        BATCH=batch,
        HEADS=heads,
        ROWS=rows,
        WIDTH=width,
        num_warps=1,
    )
    return q_BNK


def attend_to_places(q_BNK: Tensor, k_LBMK: Tensor, v_LBMK: Tensor, position: Tensor, places: int) -> Tensor:
    """Of one token, to the places 0 .. position, all below `places`; [B, N, K]. No other place is read.

    Each program has some of the places of one key head; their sums are put together after (FlashDecoding).
    """
    _, batch, heads, width = k_LBMK.shape
    group = q_BNK.shape[1] // heads
    most_parts = triton.cdiv(_PROGRAMS, batch * heads)
    chunk = _BLOCK_KEYS * triton.cdiv(triton.cdiv(places, _BLOCK_KEYS), most_parts)
    parts = triton.cdiv(places, chunk)
    rows = batch * heads * group
    new = partial(torch.empty, dtype=torch.float32, device=q_BNK.device)
    sums, maxima, totals = new(parts, rows, width), new(parts, rows), new(parts, rows)
    _attend_to_part[(parts, batch * heads)](
        *(q_BNK, k_LBMK, v_LBMK, position, sums, maxima, totals, width**-0.5, chunk),
        SAMPLES_AND_HEADS=batch * heads,
        GROUP=group,
        ROWS=max(triton.next_power_of_2(group), _MIN_ROWS),
        WIDTH=width,
        # Of float32 fewer fit on the chip.
        BLOCK=_BLOCK_KEYS if k_LBMK.element_size() <= 2 else _BLOCK_KEYS // 2,
        num_warps=4,
    )
    out = torch.empty_like(q_BNK)
    _put_together[(rows,)](
        *(sums, maxima, totals, out, parts),
        NUM_ROWS=rows,
        PARTS=triton.next_power_of_2(most_parts),
        WIDTH=width,
        num_warps=4,
    )
    return out


def silu_and_multiply(both_BF: Tensor) -> Tensor:
    """silu of the first half of the channels times the second half, [B, F]."""
    batch, channels = both_BF.shape[0], both_BF.shape[1] // 2
    out = torch.empty(batch, channels, dtype=both_BF.dtype, device=both_BF.device)
    block = 1024
    _silu_and_multiply[(batch, triton.cdiv(channels, block))](both_BF, out, CHANNELS=channels, BLOCK=block)
    return out


def multiply_vector(x_1I: Tensor, weight_OI: Tensor) -> Tensor:
    """x times the transposed weight, [1, O], summed in float32; faster than cuBLAS for one row."""
    outputs, inputs = weight_OI.shape
    out = torch.empty(1, outputs, dtype=x_1I.dtype, device=x_1I.device)
    rows, block, warps = _tiling(inputs)
    _multiply_vector[(triton.cdiv(outputs, rows),)](
        *(x_1I, weight_OI, out), OUTPUTS=outputs, INPUTS=inputs, ROWS=rows, BLOCK=block, num_warps=warps
    )
    return out


def multiply_and_gate(x_1I: Tensor, weight_OI: Tensor) -> Tensor:
    """silu_and_multiply(multiply_vector(x, weight)), [1, O / 2], at once."""
    outputs, inputs = weight_OI.shape[0] // 2, weight_OI.shape[1]
    out = torch.empty(1, outputs, dtype=x_1I.dtype, device=x_1I.device)
    rows, block, warps = _tiling(inputs)
    _multiply_and_gate[(triton.cdiv(outputs, rows),)](
        *(x_1I, weight_OI, out), OUTPUTS=outputs, INPUTS=inputs, ROWS=rows, BLOCK=block, num_warps=warps
    )
    return out


def _tiling(inputs: int) -> tuple[int, int, int]:
    """Rows and columns of the weight that a program has at a time, and its warps: the fastest of 13 on an
    H200, at the released models' sizes (docs/performance.md)."""
    for rows, block, warps in ((1, 4096, 8), (2, 2048, 4)):
        if inputs % block == 0:
            return rows, block, warps
    return 1, min(1024, triton.next_power_of_2(inputs)), 4


@triton.jit
def _add_and_norm(
    x, delta, weight, total, normed, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr
):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    places = tl.program_id(0) * WIDTH + columns
    value = tl.load(x + places, mask=inside, other=0.0)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        value = value + tl.load(delta + places, mask=inside, other=0.0)
        tl.store(total + places, value, mask=inside)
    exact = value.to(tl.float32)
    factor = tl.rsqrt(tl.sum(exact * exact, 0) / WIDTH + eps)
    tl.store(normed + places, (exact * factor * scale).to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotate_and_store(
    qkv, q_weight, k_weight, cos, sin, position, q_out, k_cache, v_cache, eps,
    BATCH: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample, head_row = tl.program_id(0), tl.program_id(1)
    head, row = head_row // ROWS, head_row % ROWS
    columns = tl.arange(0, WIDTH)
    partners = (columns + WIDTH // 2) % WIDTH
    source = qkv + (sample * HEADS * ROWS + head_row) * WIDTH
    value = tl.load(source + columns)
    place = tl.load(position)
    slot = ((place * BATCH + sample) * HEADS + head) * WIDTH + columns
    if row == ROWS - 1:
        tl.store(v_cache + slot, value)
    else:
        weight = q_weight
        if row == ROWS - 2:
            weight = k_weight
        exact, partner = value.to(tl.float32), tl.load(source + partners).to(tl.float32)
        factor = tl.rsqrt(tl.sum(exact * exact, 0) / WIDTH + eps)
        dtype = q_out.dtype.element_ty
        own = (exact * factor * tl.load(weight + columns).to(tl.float32)).to(dtype).to(tl.float32)
        other = (partner * factor * tl.load(weight + partners).to(tl.float32)).to(dtype).to(tl.float32)
        sign = tl.where(columns < WIDTH // 2, -1.0, 1.0)
        angle = place * WIDTH + columns
        turned = (own * tl.load(cos + angle) + sign * other * tl.load(sin + angle)).to(dtype)
        if row == ROWS - 2:
            tl.store(k_cache + slot, turned)
        else:
            query = (sample * HEADS + head) * (ROWS - 2) + row
            tl.store(q_out + query * WIDTH + columns, turned)


@triton.jit
def _attend_to_part(
    q, k, v, position, sums, maxima, totals, scale, chunk,
    SAMPLES_AND_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    part, head = tl.program_id(0), tl.program_id(1)
    first = part * chunk
    end = tl.minimum(first + chunk, tl.load(position).to(tl.int32) + 1)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    is_row = rows < GROUP
    queries = tl.load(q + (head * GROUP + rows)[:, None] * WIDTH + columns, mask=is_row[:, None], other=0.0)
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(first, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        visible = places < end
        lines = (places.to(tl.int64) * SAMPLES_AND_HEADS + head) * WIDTH
        keys = tl.load(k + lines[None, :] + columns[:, None], mask=visible[None, :], other=0.0)
        scores = tl.dot(queries, keys, input_precision="ieee") * scale
        scores = tl.where(visible[None, :], scores, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp(largest - new_largest)
        weights = tl.exp(scores - new_largest[:, None])
        values = tl.load(v + lines[:, None] + columns[None, :], mask=visible[:, None], other=0.0)
        product = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        summed = summed * shrink[:, None] + product
        total = total * shrink + tl.sum(weights, 1)
        largest = new_largest
    target = (part * SAMPLES_AND_HEADS + head) * GROUP + rows
    tl.store(sums + target[:, None] * WIDTH + columns, summed, mask=is_row[:, None])
    tl.store(maxima + target, largest, mask=is_row)
    tl.store(totals + target, total, mask=is_row)


@triton.jit(do_not_specialize=["parts"])
def _put_together(
    sums, maxima, totals, out, parts, NUM_ROWS: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0)
    each, columns = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    is_part = each < parts
    places = each * NUM_ROWS + row
    largest = tl.load(maxima + places, mask=is_part, other=-float("inf"))
    weights = tl.exp(largest - tl.max(largest, 0))
    total = tl.sum(weights * tl.load(totals + places, mask=is_part, other=0.0), 0)
    summed = tl.load(sums + places[:, None] * WIDTH + columns, mask=is_part[:, None], other=0.0)
    mean = tl.sum(weights[:, None] * summed, 0) / total
    tl.store(out + row * WIDTH + columns, mean.to(out.dtype.element_ty))


@triton.jit
def _silu_and_multiply(both, out, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    sample = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    gate = tl.load(both + sample * 2 * CHANNELS + columns, mask=inside, other=0.0)
    value = tl.load(both + (sample * 2 + 1) * CHANNELS + columns, mask=inside, other=0.0)
    exact = gate.to(tl.float32)
    opened = (exact / (1.0 + tl.exp(-exact))).to(out.dtype.element_ty)
    tl.store(out + sample * CHANNELS + columns, opened * value, mask=inside)


@triton.jit
def _multiply_vector(
    x, weight, out, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = _product_of_rows(x, weight, rows, rows < OUTPUTS, INPUTS, ROWS, BLOCK)
    tl.store(out + rows, sums.to(out.dtype.element_ty), mask=rows < OUTPUTS)


@triton.jit
def _multiply_and_gate(
    x, weight, out, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < OUTPUTS
    dtype = out.dtype.element_ty
    gate = _product_of_rows(x, weight, rows, inside, INPUTS, ROWS, BLOCK).to(dtype).to(tl.float32)
    value = _product_of_rows(x, weight, OUTPUTS + rows, inside, INPUTS, ROWS, BLOCK).to(dtype)
    opened = (gate / (1.0 + tl.exp(-gate))).to(dtype)
    tl.store(out + rows, opened * value, mask=inside)


@triton.jit
def _product_of_rows(x, weight, rows, inside, INPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    lines = rows.to(tl.int64)[:, None] * INPUTS
    products = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, INPUTS, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        is_input = columns < INPUTS
        vector = tl.load(x + columns, mask=is_input, other=0.0).to(tl.float32)
        mask = inside[:, None] & is_input[None, :]
        places = weight + lines + columns[None, :]
        matrix = tl.load(places, mask=mask, other=0.0, eviction_policy="evict_first")
        products += matrix.to(tl.float32) * vector[None, :]
    return tl.sum(products, 1)
